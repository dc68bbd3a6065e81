"""Train a found recurrent cell on text: the evaluation of DARTS (2019, arXiv:1806.09055), after AWD-LSTM
(2017, arXiv:1708.02182).

SGD at a high rate; once validation has not improved for some epochs, the average of all weights since then is
what counts (ASGD). The best weights on validation are kept. Where the published code differs: each of its
ASGD steps uses the learning rate of the window before; its perplexities count one word too many; and after a
loss that is not finite it goes back to the optimiser of its best epoch, where this goes back to the best
weights and starts their average afresh.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from engine.checkpoint import load_state, load_weights, save_state, save_weights
from engine.command.interrupt import Stop, stop_on_signal
from engine.command.progress import Advance, progress
from engine.compute.macs import count_parameters
from engine.config import Config, format_count, validate
from engine.data.text import Text, columns, window, windows
from engine.errors import UserError
from engine.optim import set_learning_rate
from engine.run import Run, read_json, write_json
from engine.seed import derive, numpy_generator, torch_generator
from oneshot.networks.recurrent import KIND, CellNetwork, Dropout, draw_masks, perplexity, slowness, text_loss
from oneshot.spaces.genotype import Genotype

LOG_EVERY = 10
SPREAD = 5.0  # deviation of the windows' lengths, in words
RETRIES = 20


class Language(Config):
    """Training of a recurrent cell; the defaults are those published for Penn Treebank."""

    hidden: int = Field(850, ge=1, description="units of the cell and of the embedding")
    epochs: int = Field(8000, ge=1, description="passes over the training text")
    batch: int = Field(64, ge=1, description="columns of text that are read at once")
    bptt: int = Field(
        35, ge=1, description="usual words in a window; the learning rate is proportional to its length"
    )
    lr: float = Field(20.0, gt=0, description="learning rate")
    clip: float = Field(0.25, gt=0, description="largest norm of the gradient")
    weight_decay: float = Field(8e-7, ge=0, description="L2 on every weight")
    slowness: float = Field(1e-3, ge=0, description="penalty on the squared change of the cell's outputs")
    dropout: Dropout = Field(Dropout(words=0.1), description="rates of variational dropout")
    patience: int = Field(
        5,
        ge=0,
        description="average weights once validation is worse than its best of this many epochs ago or more",
    )
    val_batch: int = Field(10, ge=1, description="columns of the validation text; the test text is one")


class Model(Config):
    """model.json: what the weights belong to."""

    genotype: Genotype
    hidden: int
    vocabulary: list[str]


class TrainedLanguage(NamedTuple):
    """A trained network, in evaluation mode on CPU, and the words it knows."""

    network: CellNetwork
    model: Model


def train_language(
    run: Run, genotype: Genotype, text: Text, settings: Language, seed: int, device: torch.device
) -> int:
    """Train in a run folder that was started, or continue in it. Returns 0, or 130 after a signal.

    Raises:
        UserError: the cell is not recurrent, the text is too short, or training diverges again and again.
    """
    if genotype.space != KIND:
        raise UserError(
            f"A genotype of space '{genotype.space}' is no recurrent cell; text needs one of space '{KIND}'."
        )
    trainer = LanguageTrainer(run, genotype, text, settings, seed, device)
    size = format_count(count_parameters(trainer.network), 4)
    print(
        f"{size} parameters; {len(text.vocabulary)} words; {len(text.splits['train'])} to train on; device "
        f"{device}"
    )
    write_json(run.path / "model.json", trainer.model.model_dump(mode="json"))
    return trainer.run()


def load_language(path: Path) -> TrainedLanguage:
    """The network of a finished run.

    Raises:
        UserError: there is none.
    """
    if not Run(path).finished:
        raise UserError(
            f"'{path}' is not a finished run of a recurrent cell; train one, or continue it with --resume."
        )
    model = validate(Model, read_json(path / "model.json"), str(path / "model.json"))
    network = CellNetwork(len(model.vocabulary), model.hidden, model.genotype.cells[KIND])
    _restore(network, path)
    return TrainedLanguage(network.eval(), model)


def _restore(network: CellNetwork, path: Path) -> None:
    try:
        network.load_state_dict(load_weights(path / "weights.safetensors"))
    except RuntimeError:
        raise UserError(
            f"The weights in '{path}' are not those of its model.json; copy both again or train again."
        ) from None


@torch.no_grad()
def cross_entropy(
    network: CellNetwork, words_N: Tensor, batch: int, bptt: int, advance: Advance = lambda note: None
) -> float:
    """Nats a word of a text that is read in `batch` columns without dropout; the first word of a column is
    given."""
    text, hidden = columns(words_N, batch), network.start(batch)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(text) - 1, bptt):
        x, y = window(text, start, bptt)
        logits, hidden, _ = network(x, hidden)
        total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
        advance("")
    return float(total) / ((len(text) - 1) * batch)


class NotFiniteError(Exception):
    """A loss is infinite or not a number."""


class LanguageTrainer:
    """The state of a training run."""

    def __init__(
        self, run: Run, genotype: Genotype, text: Text, settings: Language, seed: int, device: torch.device
    ):
        self.folder, self.settings, self.seed, self.device = run, settings, seed, device
        self.words = {split: words.to(device) for split, words in text.splits.items()}
        self.text_RB = columns(self.words["train"], settings.batch)
        columns(self.words["val"], settings.val_batch)  # refused now, not after an epoch
        self.model = Model(genotype=genotype, hidden=settings.hidden, vocabulary=text.vocabulary)
        fresh = torch.Generator().manual_seed(derive(seed, "weights"))
        self.network = CellNetwork(len(text.vocabulary), settings.hidden, genotype.cells[KIND], fresh).to(
            device
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        self.average: AveragedModel | None = None
        self.hidden = self.network.start(settings.batch)
        self.step, self.epoch, self.read, self.retries = 0, 0, 0, 0  # read: windows of this epoch
        self.losses: list[float] = []  # on validation, an epoch each
        self.pending: list[Tensor] = []  # losses that the host has not looked at
        if (run.path / "state.pt").exists():
            self.load()

    def windows(self, epoch: int) -> list[tuple[int, int]]:
        """The windows of an epoch."""
        rng = numpy_generator(self.seed, "windows", epoch, self.retries)
        return windows(len(self.text_RB), self.settings.bptt, rng, SPREAD)

    def run(self) -> int:
        """From the current window to the end, or to a signal."""
        epochs = self.settings.epochs
        total = self.step - self.read + sum(len(self.windows(epoch)) for epoch in range(self.epoch, epochs))
        with stop_on_signal() as stop, progress("train", total, self.step) as advance:
            while self.epoch < epochs:
                try:
                    self.read_epoch(stop, advance)
                except NotFiniteError:
                    self.go_back()
                self.save()
                if stop.requested and self.epoch < epochs:
                    print(
                        f"stopped in epoch {self.epoch + 1} of {epochs}; continue with the same command and "
                        "--resume"
                    )
                    return 130
        self.report()
        return 0

    def read_epoch(self, stop: Stop, advance: Advance) -> None:
        """The rest of the current epoch, and its validation; or up to a signal."""
        for start, length in self.windows(self.epoch)[self.read :]:
            self.update(*window(self.text_RB, start, length))
            advance(self.log() if self.step % LOG_EVERY == 0 else "")
            if stop.requested:
                break
        self.log()
        if self.read == len(self.windows(self.epoch)):
            self.end_epoch()

    def update(self, x_TB: Tensor, y_TB: Tensor) -> None:
        """One optimiser step on one window."""
        settings = self.settings
        generator = torch_generator(self.device, self.seed, "masks", self.step, self.retries)
        masks = draw_masks(settings.dropout, self.network, settings.batch, generator)
        read = self.network(x_TB, self.hidden, masks)
        entropy = text_loss(read, y_TB)
        self.optimizer.zero_grad()
        (entropy + settings.slowness * slowness(read)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        set_learning_rate(self.optimizer, settings.lr * len(x_TB) / settings.bptt)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.hidden = read.hidden_1BH.detach()
        self.pending.append(entropy.detach())
        self.step, self.read = self.step + 1, self.read + 1

    def log(self) -> str:
        """Look at the losses since the last look: one host synchronisation. Returns a note for the progress
        bar."""
        if not self.pending:
            return ""
        loss, self.pending = float(torch.stack(self.pending).mean()), []
        if not math.isfinite(loss):
            raise NotFiniteError
        self.folder.log(step=self.step, epoch=self.epoch, loss=loss)
        best = f"  best validation {perplexity(min(self.losses)):.2f}" if self.losses else ""
        return f"epoch {self.epoch + 1}  perplexity {perplexity(loss):.2f}{best}"

    @property
    def weights(self) -> CellNetwork:
        """What is evaluated and handed on: the average once there is one."""
        if self.average is None:
            return self.network
        assert isinstance(self.average.module, CellNetwork)
        return self.average.module

    def end_epoch(self) -> None:
        """Validate; keep the weights if they are the best; begin to average if validation got no better."""
        settings, losses = self.settings, self.losses
        loss = cross_entropy(self.weights, self.words["val"], settings.val_batch, settings.bptt)
        if not math.isfinite(loss):
            raise NotFiniteError
        averaged = self.average is not None
        self.folder.log(step=self.step, epoch=self.epoch, val_perplexity=perplexity(loss), averaged=averaged)
        if loss < min(losses, default=math.inf):
            save_weights(self.folder.path / "weights.safetensors", self.weights.state_dict())
        earlier = losses[: max(len(losses) - settings.patience, 0)]
        if not averaged and earlier and loss > min(earlier):
            print(
                f"epoch {self.epoch + 1}: validation got no better; from now on the average of all weights "
                "counts"
            )
            self.average = AveragedModel(self.network)
        losses.append(loss)
        self.epoch, self.read, self.hidden = self.epoch + 1, 0, self.network.start(settings.batch)

    def go_back(self) -> None:
        """Read this epoch again from the best weights with other windows and masks.

        Raises:
            UserError: there are none, or this happened too often.
        """
        self.retries, self.pending = self.retries + 1, []
        if not self.losses or self.retries > RETRIES:
            raise UserError(
                f"The loss is not finite in epoch {self.epoch + 1}, for the {self.retries}. time; start "
                "again with a lower learning "
                f"rate (now {self.settings.lr}) and --overwrite. The last good checkpoint stays in "
                f"'{self.folder.path}'."
            )
        print(
            f"the loss is not finite in epoch {self.epoch + 1}; back to the best weights, with other windows "
            "and masks"
        )
        _restore(self.network, self.folder.path)
        self.average = None if self.average is None else AveragedModel(self.network)
        self.read, self.hidden = 0, self.network.start(self.settings.batch)

    def save(self) -> None:
        """What --resume needs."""
        numbers = {
            "step": self.step,
            "epoch": self.epoch,
            "read": self.read,
            "retries": self.retries,
            "losses": self.losses,
        }
        average = None if self.average is None else self.average.state_dict()
        tensors: dict[str, Any] = {
            "network": self.network.state_dict(),
            "average": average,
            "hidden": self.hidden,
        }
        save_state(self.folder.path / "state.pt", tensors | numbers)

    def load(self) -> None:
        """Continue from state.pt."""
        path = self.folder.path / "state.pt"
        state = load_state(path)
        try:
            self.network.load_state_dict(state["network"])
            if state["average"] is not None:
                self.average = AveragedModel(self.network)
                self.average.load_state_dict(state["average"])
            self.step, self.epoch, self.read, self.retries = (
                int(state[name]) for name in ("step", "epoch", "read", "retries")
            )
            self.losses, self.hidden = list(state["losses"]), state["hidden"].to(self.device)
        except (KeyError, RuntimeError, ValueError, TypeError):
            raise UserError(
                f"Resume state '{path}' is not of this run; start again with --overwrite."
            ) from None
        self.folder.forget_after(self.step)
        print(f"resumed in epoch {self.epoch + 1} of {self.settings.epochs}")

    def report(self) -> None:
        """The best weights on the test text, once."""
        _restore(self.network, self.folder.path)
        words, bptt = self.words["test"], self.settings.bptt
        with progress("test", -(-(len(words) - 1) // bptt)) as advance:
            test = perplexity(cross_entropy(self.network, words, 1, bptt, advance))
        val = perplexity(min(self.losses))
        self.folder.log(step=self.step, epoch=self.epoch, best_val_perplexity=val, test_perplexity=test)
        self.folder.finish()
        print(f"perplexity {val:.2f} on validation, {test:.2f} on test")
