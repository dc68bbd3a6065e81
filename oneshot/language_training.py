"""Train a found recurrent cell on text.

The evaluation of DARTS (2019, arXiv:1806.09055), after AWD-LSTM (2017, arXiv:1708.02182). SGD at a high rate;
once validation has not improved for some epochs, the average of all weights since then is what counts (ASGD).
The best weights on validation are kept. Where the published code differs: each of its ASGD steps uses the
learning rate of the window before; its perplexities count one word too many; and after a loss that is not
finite it goes back to the optimiser of its best epoch, where this goes back to the best weights and starts
their average afresh.
"""

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from engine.checkpoint import save_weights
from engine.command.interrupt import Stop
from engine.command.progress import Advance, progress
from engine.compute.macs import count_parameters
from engine.config import format_count
from engine.data.text import Text, columns, window, windows
from engine.errors import UserError
from engine.loop import EpochLoop
from engine.optim import RunningAverage, set_learning_rate
from engine.run import Run, write_json
from engine.runs.saving import Saving
from engine.seed import derive, numpy_generator, torch_generator
from oneshot.language import Language, LanguageModel, cross_entropy, load_best_weights
from oneshot.networks.language_loss import perplexity, slowness, text_loss
from oneshot.networks.recurrent import KIND, CellNetwork, draw_masks
from oneshot.spaces.genotype import Genotype

SPREAD = 5.0  # deviation of the windows' lengths, in words
RETRIES = 20  # after so many losses that are not finite, training ends with an error


def train_language(
    run: Run,
    genotype: Genotype,
    text: Text,
    settings: Language,
    seed: int,
    device: torch.device,
    saving: Saving | None = None,
) -> int:
    """Train in a run folder that was started, or continue in it.

    Args:
        run: the folder.
        genotype: the cell.
        text: its words.
        settings: of the training.
        seed: of weights, windows and masks.
        device: where to compute.
        saving: when it saves and stops; None: as by default.

    Returns:
        The exit status: 0, or 130 after a signal or when its time is over.

    Raises:
        UserError: the cell is not recurrent, the text is too short, or training diverges again and again.
    """
    if genotype.space != KIND:
        raise UserError(
            f"A genotype of space '{genotype.space}' is no recurrent cell; text needs one of space '{KIND}'."
        )
    trainer = LanguageTrainer(run, genotype, text, settings, seed, device)
    trainer.saving = saving or trainer.saving
    size = format_count(count_parameters(trainer.network), 4)
    print(
        f"{size} parameters; {len(text.vocabulary)} words; {len(text.splits['train'])} to train on; device "
        f"{device}"
    )
    # Before the first step, so that a stopped run already says what it is.
    write_json(run.path / "model.json", trainer.model.model_dump(mode="json"))
    return trainer.run()


class NotFiniteError(Exception):
    """A loss is infinite or not a number."""


class LanguageTrainer(EpochLoop):
    """The training of a recurrent cell: an epoch is one pass over the text, window by window.

    Args:
        folder: the run folder.
        genotype: the cell.
        text: its words.
        settings: of the training.
        seed: of weights, windows and masks.
        device: where to compute.
    """

    def __init__(
        self, folder: Run, genotype: Genotype, text: Text, settings: Language, seed: int, device: torch.device
    ):
        super().__init__(folder, settings.epochs)
        self.settings, self.seed, self.device = settings, seed, device
        self.words = {split: words.to(device) for split, words in text.splits.items()}
        self.text_RB = columns(self.words["train"], settings.batch)
        columns(self.words["val"], settings.val_batch)  # too short a text is refused now, not after an epoch
        self.model = LanguageModel(genotype=genotype, hidden=settings.hidden, vocabulary=text.vocabulary)
        # On CPU: a seed gives the same weights on every device.
        fresh = torch.Generator().manual_seed(derive(seed, "weights"))
        network = CellNetwork(len(text.vocabulary), settings.hidden, genotype.cells[KIND], fresh)
        self.network = network.to(device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        self.average: RunningAverage | None = None
        self.hidden = self.network.start(settings.batch)
        self.retries = 0  # how often a loss was not finite; other windows and masks are drawn after each
        self.losses: list[float] = []  # on validation, an epoch each
        self.restore()

    def windows(self, epoch: int) -> list[tuple[int, int]]:
        """(start, length) of the windows of an epoch."""
        # The generator depends on the epoch only, so a resumed run cuts the same windows.
        rng = numpy_generator(self.seed, "windows", epoch, self.retries)
        return windows(len(self.text_RB), self.settings.bptt, rng, SPREAD)

    def steps_in(self, epoch: int) -> int:
        """The number of windows."""
        return len(self.windows(epoch))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(words, next words), (T, B) each, of the windows that remain of the epoch."""
        for start, length in self.windows(self.epoch)[self.batches_done :]:
            yield window(self.text_RB, start, length)

    def run_epoch(self, stop: Stop, advance: Advance) -> None:
        """The rest of the current epoch; if a loss is not finite, back to its start with the best weights."""
        try:
            super().run_epoch(stop, advance)
        except NotFiniteError:
            self.go_back()

    def update(self, x_TB: Tensor, y_TB: Tensor, /) -> None:
        """One optimiser step on one window."""
        settings = self.settings
        # From the step, not from a running generator: a resumed run draws the same masks.
        generator = torch_generator(self.device, self.seed, "masks", self.step, self.retries)
        masks = draw_masks(settings.dropout, self.network, settings.batch, generator)
        # The network goes on from the hidden state after the window before.
        output = self.network(x_TB, self.hidden, masks)
        entropy = text_loss(output, y_TB)
        self.optimizer.zero_grad()
        (entropy + settings.slowness * slowness(output)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        # As published, the rate is proportional to the window's length.
        set_learning_rate(self.optimizer, settings.lr * len(x_TB) / settings.bptt)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        # Backpropagation ends at the window's start.
        self.hidden = output.hidden_1BH.detach()
        self.done(entropy.detach())

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss, and the best validation so far."""
        (loss,) = losses
        best = f"  best validation {perplexity(min(self.losses)):.2f}" if self.losses else ""
        return {"loss": loss}, f"epoch {self.epoch + 1}  perplexity {perplexity(loss):.2f}{best}"

    def diverged(self, what: str, step: int) -> NoReturn:
        """Go back to the best weights instead of ending the run (`run_epoch`)."""
        # A learning rate of 20 leads to such losses now and then.
        raise NotFiniteError

    def learned(self) -> dict[str, list[Tensor]]:
        """The network's parameters."""
        return {"weights are": list(self.network.parameters())}

    @property
    def weights(self) -> CellNetwork:
        """The network that is evaluated and saved: the average once there is one."""
        if self.average is None:
            return self.network
        network = self.average.network
        assert isinstance(network, CellNetwork)
        return network

    def after_epoch(self) -> None:
        """Validate; keep the weights if they are the best; begin to average if validation got no better."""
        settings, losses = self.settings, self.losses
        loss = cross_entropy(self.weights, self.words["val"], settings.val_batch, settings.bptt)
        if not math.isfinite(loss):
            raise NotFiniteError
        averaged, self.score = self.average is not None, -loss
        self.folder.log(step=self.step, epoch=self.epoch, val_perplexity=perplexity(loss), averaged=averaged)
        # The file holds the best weights; those in state.pt are the latest.
        if loss < min(losses, default=math.inf):
            save_weights(self.folder.path / "weights.safetensors", self.weights.state_dict())
        # Compared with all epochs but the latest `patience` ones.
        earlier = losses[: max(len(losses) - settings.patience, 0)]
        if not averaged and earlier and loss > min(earlier):
            print(
                f"epoch {self.epoch + 1}: validation got no better; from now on the average of all weights "
                "counts"
            )
            self.average = RunningAverage(self.network)
        losses.append(loss)
        self.hidden = self.network.start(settings.batch)

    def go_back(self) -> None:
        """Read this epoch again from the best weights with other windows and masks.

        Raises:
            UserError: there are none, or this happened too often.
        """
        self.retries, self.pending = self.retries + 1, []
        # In the first epoch there are no weights to go back to.
        if not self.losses or self.retries > RETRIES:
            raise UserError(
                f"The loss is not finite in epoch {self.epoch + 1}, for the {self.retries}. time; start "
                f"again with a lower learning rate (now {self.settings.lr}) and --overwrite. The last good "
                f"checkpoint stays in '{self.folder.path}'."
            )
        print(
            f"the loss is not finite in epoch {self.epoch + 1}; back to the best weights, with other windows "
            "and masks"
        )
        load_best_weights(self.network, self.folder.path)
        # The broken steps are in the average: it starts again at the best weights.
        if self.average is not None:
            self.average = RunningAverage(self.network)
        self.batches_done, self.hidden = 0, self.network.start(self.settings.batch)

    def place(self) -> str:
        """In epochs: how many steps remain changes with every retry."""
        return f"in epoch {self.epoch + 1} of {self.epochs}"

    def state(self) -> dict[str, Any]:
        """Weights, their average, the hidden state, and what validation said. SGD here has no momentum."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "hidden": self.hidden,
            "retries": self.retries,
            "losses": self.losses,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        self.network.load_state_dict(state["network"])
        if state["average"] is not None:
            self.average = RunningAverage(self.network)
            self.average.load_state_dict(state["average"])
        self.retries, self.losses = int(state["retries"]), list(state["losses"])
        self.hidden = state["hidden"].to(self.device)

    def finish(self) -> None:
        """The best weights on the test text, once."""
        # The file has the best weights on validation; the network has the latest.
        load_best_weights(self.network, self.folder.path)
        words, bptt = self.words["test"], self.settings.bptt
        # The first word is given, so one word less is predicted.
        test_windows = math.ceil((len(words) - 1) / bptt)
        with progress("test", test_windows) as advance:
            test = perplexity(cross_entropy(self.network, words, 1, bptt, advance))
        val = perplexity(min(self.losses))
        self.folder.log(step=self.step, epoch=self.epoch, best_val_perplexity=val, test_perplexity=test)
        self.folder.finish()
        print(f"perplexity {val:.2f} on validation, {test:.2f} on test")
