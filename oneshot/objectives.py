"""What a search is about: images or text. A task has the search network, its loss, and batches for both
levels."""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.config import Config
from engine.data.dataset import Data, Split, Subset
from engine.data.text import Text, columns, window, windows
from engine.errors import UserError
from engine.seed import derive, numpy_generator, torch_generator
from oneshot.bilevel import ImageLoss, Inner, Loss, Mixtures
from oneshot.methods.method import Method, Sgd
from oneshot.networks.recurrent import (
    Dropout,
    LanguageLoss,
    RecurrentNetwork,
    TextBatch,
    draw_masks,
    perplexity,
)
from oneshot.networks.search import DartsNetwork, NasBench201Network
from oneshot.spaces.cells import CellSpace

BATCH = 250  # images at a time where nothing is learned
SPLITS_OF: tuple[tuple[Split, str], ...] = (("train", "weights"), ("val", "architecture"))


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


class Task(Protocol):
    """Images or text."""

    network: nn.Module
    quality: str  # what `measure` returns: accuracy (more is better) or perplexity (less is better)
    about: str  # what there is to learn from, in words
    batch_items: int  # images or words in a usual batch

    @property
    def loss(self) -> Loss:
        """Of the network on a batch."""
        ...

    def steps(self, epoch: int) -> int:
        """Pairs of batches in an epoch."""
        ...

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """(batch of the weights' part, batch of the architecture's part), without the first `skip` pairs."""
        ...

    def rate(self, batch: Any) -> float:
        """What the learning rate is multiplied by for this batch."""
        ...

    def for_weights(self, batch: Any) -> Any:
        """The batch as the weights' own step sees it."""
        ...

    def measure(self, mixtures: Mixtures, limit: int | None = None) -> float:
        """Quality on the architecture's part, nothing augmented; on at most `limit` images or words."""
        ...

    def inner(self, sgd: Sgd, rate: float, buffers: list[Tensor | None]) -> Inner:
        """The weights' step that the architecture looks ahead to."""
        ...

    def judges(self, epoch: int) -> Iterator[Any]:
        """Batches of the architecture's part without end, on which architectures are rewarded."""
        ...

    def reward(self, batch: Any, mixtures: Mixtures) -> float:
        """How well an architecture does on one of them; more is better."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What one step hands to the next beside weights."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up such a state."""
        ...


def search_network(
    space: CellSpace, method: Method, channels: int, cells: int, classes: int, inputs: int
) -> nn.Module:
    """The untrained search network of a space of images, drawn from torch's global generator."""
    auxiliary = method.auxiliary_skip is not None
    if space.name == "nasbench201":
        return NasBench201Network(
            space, channels, cells, classes, inputs, method.partial, auxiliary=auxiliary
        )  # batch statistics always
    return DartsNetwork(
        space,
        channels,
        cells,
        classes,
        inputs,
        method.partial,
        not method.samples,
        method.pool_norm,
        auxiliary=auxiliary,
        last_norm=method.last_norm,
    )


class ImageTask:
    """Classification of images; the validation split is the architecture's part."""

    quality = "accuracy"

    loss: Loss

    def __init__(self, network: nn.Module, data: Data, method: Method, batch_size: int, bf16: bool = False):
        if data.size % 4:
            raise UserError(
                f"Images of side {data.size} cannot be halved twice, as every search network does; use a "
                "multiple of 4."
            )
        self.network: nn.Module = network.to(data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = ImageLoss(self.network, bf16)
        self.data, self.batch_size, self.batch_items = data, batch_size, batch_size
        self.subset: Subset = "both" if method.level == "single" else "train"
        self.of_architecture: Subset = "both" if method.level == "single" else "val"
        self.steps(0), data.steps(batch_size, self.of_architecture)  # refused now, not in the first step
        parts = [
            f"{data.size_of(subset)} images for the {who}"
            for subset, who in ((self.subset, "weights"), (self.of_architecture, "architecture"))
        ]
        self.about = f"{len(data.classes)} classes; {', '.join(parts)}"

    def steps(self, epoch: int) -> int:
        """Pairs of batches in an epoch."""
        return self.data.steps(self.batch_size, self.subset)

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """Both augmented. Where the architecture's part is smaller, it is passed over again; single level:
        the same batch twice."""
        train = self.data.train_batches(self.batch_size, epoch, skip, subset=self.subset)
        if self.subset == "both":
            yield from ((batch, batch) for batch in train)
            return
        yield from zip(train, self._again(epoch, skip), strict=False)

    def _again(self, epoch: int, skip: int) -> Iterator[Any]:
        steps = self.data.steps(self.batch_size, "val")
        number = epoch * self.steps(epoch) + skip
        while True:
            yield from self.data.train_batches(self.batch_size, number // steps, number % steps, subset="val")
            number = (number // steps + 1) * steps

    def rate(self, batch: Any) -> float:
        """All batches are of one size."""
        return 1.0

    def for_weights(self, batch: Any) -> Any:
        """The same."""
        return batch

    @torch.no_grad()
    def measure(self, mixtures: Mixtures, limit: int | None = None) -> float:
        """Accuracy in [0, 1]."""
        hits, count = [], 0
        for x, y in self.data.batches("val", BATCH, limit):
            hits.append((self.network(x, mixtures).argmax(1) == y).sum())
            count += len(y)
        return float(torch.stack(hits).sum()) / count

    def inner(self, sgd: Sgd, rate: float, buffers: list[Tensor | None]) -> Inner:
        """Without clipping, as the published code."""
        return Inner(rate, sgd.momentum, sgd.weight_decay, buffers)

    def judges(self, epoch: int) -> Iterator[Any]:
        """Augmented images."""
        return self._again(epoch, 0)

    def reward(self, batch: Any, mixtures: Mixtures) -> float:
        """Accuracy in [0, 1]."""
        x, y = batch
        return float((self.network(x, mixtures).argmax(1) == y).float().mean())

    def state(self) -> dict[str, Tensor]:
        """Images need none."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Images need none."""


class TextTask:
    """Prediction of the next word; the validation text is the architecture's part. Masks are shared by all
    forwards of one step."""

    quality = "perplexity"

    loss: Loss

    def __init__(self, text: Text, settings: TextSettings, batch_size: int, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(derive(seed, "weights"))
        self.words = RecurrentNetwork(len(text.vocabulary), settings.hidden, generator).to(device)
        self.network: nn.Module = self.words
        self.loss = LanguageLoss(self.words)
        self.settings, self.bptt, self.batch_size, self.seed, self.device = (
            settings,
            settings.bptt,
            batch_size,
            seed,
            device,
        )
        self.batch_items = batch_size * settings.bptt
        parts = [f"{len(text.splits[split])} for the {who}" for split, who in SPLITS_OF]
        self.about = f"vocabulary of {len(text.vocabulary)} words; {', '.join(parts)}"
        self.train_RB = columns(text.splits["train"].to(device), batch_size)
        self.val_RB = columns(text.splits["val"].to(device), batch_size)
        self.hidden = [self.words.start(batch_size), self.words.start(batch_size)]
        self.pair: list[TextBatch] = []  # of the step under way

    def windows(self, epoch: int) -> list[tuple[int, int]]:
        """Of the training text."""
        return windows(len(self.train_RB), self.bptt, numpy_generator(self.seed, "windows", epoch), 0)

    def steps(self, epoch: int) -> int:
        """Windows in an epoch."""
        return len(self.windows(epoch))

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """A window of each text; hidden states are carried from step to step, and start at 0 in each
        epoch."""
        if skip == 0:
            self.load({name: self.words.start(self.batch_size) for name in ("train", "val")})
        for step, (start, length) in enumerate(self.windows(epoch)[skip:], start=skip):
            self.hidden, self.pair = self._carried(), []
            for number, (text, at) in enumerate(
                ((self.train_RB, start), (self.val_RB, start % (len(self.val_RB) - 2)))
            ):
                purpose = (self.seed, ("masks", "validation masks")[number], epoch, step)
                generator = torch_generator(self.device, *purpose)

                def draw(generator: torch.Generator = generator) -> Any:
                    return draw_masks(self.settings.dropout, self.words, self.batch_size, generator)

                masks = draw if self.settings.fresh_masks else draw()
                self.pair.append(TextBatch(*window(text, at, length), self.hidden[number], masks))
            yield self.pair[0], self.pair[1]

    def _carried(self) -> list[Tensor]:
        """The hidden states after the last step."""
        return [
            batch.hidden_1BH if batch.after is None else batch.after for batch in self.pair
        ] or self.hidden

    def rate(self, batch: Any) -> float:
        """Proportional to the window's length."""
        return len(batch.tokens_TB) / self.bptt

    def for_weights(self, batch: Any) -> Any:
        """With the penalty on outputs that change."""
        batch.penalty = self.settings.slowness
        return batch

    @torch.no_grad()
    def measure(self, mixtures: Mixtures, limit: int | None = None) -> float:
        """Perplexity in one pass over the validation text."""
        hidden, total, count = self.words.start(self.batch_size), 0.0, 0
        for start in range(0, len(self.val_RB) - 1, self.bptt):
            batch = TextBatch(*window(self.val_RB, start, self.bptt), hidden)
            total += float(self.loss(batch, mixtures)) * len(batch.tokens_TB)
            count += len(batch.tokens_TB)
            assert batch.after is not None
            hidden = batch.after
            if limit is not None and count * self.batch_size >= limit:
                break
        return perplexity(total / count)

    def inner(self, sgd: Sgd, rate: float, buffers: list[Tensor | None]) -> Inner:
        """With clipping."""
        published = self.settings.published_lookahead
        still = frozenset({"embedding_VH"} if published else ())
        return Inner(rate, sgd.momentum, sgd.weight_decay, buffers, sgd.clip_norm, published, still)

    def judges(self, epoch: int) -> Iterator[Any]:
        """Windows in order, again and again, each from an empty hidden state."""
        for start in itertools.cycle(range(0, len(self.val_RB) - 2, self.bptt)):
            yield TextBatch(*window(self.val_RB, start, self.bptt), self.words.start(self.batch_size))

    def reward(self, batch: Any, mixtures: Mixtures) -> float:
        """80 / perplexity (ENAS, 2018, arXiv:1802.03268)."""
        return 80 / perplexity(float(self.loss(batch, mixtures)))

    def state(self) -> dict[str, Tensor]:
        """The hidden states."""
        return dict(zip(("train", "val"), self._carried(), strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Take them up."""
        self.hidden, self.pair = [state["train"], state["val"]], []
