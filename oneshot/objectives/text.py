"""A search on text: prediction of the next word by a recurrent cell."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.compute.precision import float32_as_exported
from engine.config import Config
from engine.data.text import Text, columns, window, windows
from engine.seed import derive, numpy_generator, torch_generator
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.bilevel import LossFn, VirtualStep
from oneshot.networks.dropout import Dropout
from oneshot.networks.language_loss import LanguageLoss, TextBatch, perplexity
from oneshot.networks.recurrent import RecurrentNetwork, draw_masks


class TextSettings(Config):
    """The recurrent search network and how it reads."""

    hidden: int = Field(300, ge=1, description="units of the cell and of the embedding")
    bptt: int = Field(35, ge=2, description="words of a window; one in twenty is half as long")
    dropout: Dropout = Field(Dropout(), description="rates of variational dropout")
    slowness: float = Field(1e-3, ge=0, description="penalty on outputs that change from word to word")
    fresh_masks: bool = Field(
        False,
        description=(
            "other dropout masks in each forward of an architecture step, as the published code: its second "
            "order is then noise"
        ),
    )
    published_lookahead: bool = Field(
        False,
        description=(
            "second order as the published code: the Hessian's direction is clipped and the embedding does "
            "not move"
        ),
    )


class TextObjective:
    """Prediction of the next word; the validation text is the architecture's part.

    Args:
        text: its words.
        settings: of the network and of how it reads.
        batch_size: columns of text that are read at once.
        seed: of weights, windows and masks.
        device: where to compute.
    """

    quality = "perplexity"

    loss: LossFn

    def __init__(self, text: Text, settings: TextSettings, batch_size: int, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(derive(seed, "weights"))
        self.recurrent = RecurrentNetwork(len(text.vocabulary), settings.hidden, generator).to(device)
        self.network: nn.Module = self.recurrent
        self.loss = LanguageLoss(self.recurrent)
        self.settings, self.bptt, self.batch_size = settings, settings.bptt, batch_size
        self.seed, self.device = seed, device
        self.batch_items = batch_size * settings.bptt
        train, val = text.splits["train"], text.splits["val"]
        self.about = (
            f"vocabulary of {len(text.vocabulary)} words; {len(train)} for the weights, {len(val)} for the "
            "architecture"
        )
        self.train_RB = columns(train.to(device), batch_size)
        self.val_RB = columns(val.to(device), batch_size)
        self.measured_items = self.val_RB.numel()
        # The hidden states of both texts before the current step, and the batches of this step.
        self.hidden = [self.recurrent.start(batch_size), self.recurrent.start(batch_size)]
        self.pair: list[TextBatch] = []

    def replace(self, network: nn.Module) -> None:
        """No search on text has stages."""
        raise AssertionError("methods refuse stages on text")

    @property
    def chance(self) -> float:
        """The perplexity of who knows only how frequent each word is in the training text."""
        # One more of each word: one that the training text lacks is not impossible.
        counts_V = 1 + torch.bincount(self.train_RB.flatten(), minlength=len(self.recurrent.bias_V))
        log_p_V = (counts_V / counts_V.sum()).log()
        return perplexity(-float(log_p_V[self.val_RB].mean()))

    def windows(self, epoch: int) -> list[tuple[int, int]]:
        """(start, length) of the windows of the training text."""
        return windows(len(self.train_RB), self.bptt, numpy_generator(self.seed, "windows", epoch), 0)

    def steps(self, epoch: int) -> int:
        """Windows in an epoch."""
        return len(self.windows(epoch))

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """A window of each text.

        Hidden states are carried from step to step, and start at 0 in each epoch.
        """
        # After a resume in the middle of an epoch the hidden states come from the checkpoint instead.
        if skip == 0:
            self.load({name: self.recurrent.start(self.batch_size) for name in ("train", "val")})
        for step, (start, length) in enumerate(self.windows(epoch)[skip:], start=skip):
            self.hidden = self._carried()
            train = TextBatch(*window(self.train_RB, start, length), self.hidden[0])
            train.masks = self._masks("masks", epoch, step)
            # The validation text may be shorter: it is read again from its start.
            val_start = start % (len(self.val_RB) - 2)
            valid = TextBatch(*window(self.val_RB, val_start, length), self.hidden[1])
            valid.masks = self._masks("validation masks", epoch, step)
            self.pair = [train, valid]
            yield train, valid

    def _masks(self, purpose: str, epoch: int, step: int) -> Any:
        """The masks of all forwards of one step, or a function that draws others in each."""
        generator = torch_generator(self.device, self.seed, purpose, epoch, step)
        draw = functools.partial(
            draw_masks, self.settings.dropout, self.recurrent, self.batch_size, generator
        )
        return draw if self.settings.fresh_masks else draw()

    def _carried(self) -> list[Tensor]:
        """The hidden states after the last step."""
        if not self.pair:
            return self.hidden
        states = []
        for batch in self.pair:
            # In a warm-up nobody computes a loss on the validation batch: its hidden state stays the same.
            states.append(batch.hidden_1BH if batch.after is None else batch.after)
        return states

    def rate(self, batch: Any) -> float:
        """The length of the window, as a share of the usual length."""
        return len(batch.tokens_TB) / self.bptt

    def for_weights(self, batch: Any) -> Any:
        """The batch with the penalty on outputs that change."""
        batch.penalty = self.settings.slowness
        return batch

    @torch.no_grad()
    @float32_as_exported()
    def measure(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        """Perplexity in one pass over the validation text."""
        hidden, total, count = self.recurrent.start(self.batch_size), 0.0, 0
        for start in range(0, len(self.val_RB) - 1, self.bptt):
            batch = TextBatch(*window(self.val_RB, start, self.bptt), hidden)
            # A window's loss is a mean over its words; the last window may be shorter.
            total += float(self.loss(batch, edge_weights)) * len(batch.tokens_TB)
            count += len(batch.tokens_TB)
            assert batch.after is not None
            hidden = batch.after
            # Whole windows are read, so a few words more than `limit`.
            if limit is not None and count * self.batch_size >= limit:
                break
        return perplexity(total / count)

    def virtual_step(self, sgd: WeightSgd, rate: float, buffers: list[Tensor | None]) -> VirtualStep:
        """With clipping, which is part of the step on text."""
        published = self.settings.published_lookahead
        still = frozenset({"embedding_VH"} if published else ())
        return VirtualStep(rate, sgd.momentum, sgd.weight_decay, buffers, sgd.clip_norm, published, still)

    def reward_batches(self, epoch: int) -> Iterator[Any]:
        """Windows in order, again and again, each from an empty hidden state."""
        for start in itertools.cycle(range(0, len(self.val_RB) - 2, self.bptt)):
            yield TextBatch(*window(self.val_RB, start, self.bptt), self.recurrent.start(self.batch_size))

    def reward(self, batch: Any, edge_weights: NetworkEdgeWeights) -> float:
        """80 / perplexity (ENAS, 2018, arXiv:1802.03268)."""
        return 80 / perplexity(float(self.loss(batch, edge_weights)))

    def state(self) -> dict[str, Tensor]:
        """The hidden states."""
        train, val = self._carried()
        return {"train": train, "val": val}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take them up: a checkpoint gives them on the host."""
        self.hidden = [state["train"].to(self.device), state["val"].to(self.device)]
        self.pair = []
