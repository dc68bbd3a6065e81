"""The one loop over epochs and batches, of supernets, retrained networks, searches and recurrent cells.

A run that is interrupted and resumed ends with the same weights as one that is not: whatever a step draws
comes from the run's seed and the step, and everything else is in state.pt. Losses stay on the device; the
host reads them every few steps only.
"""

import time
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from engine.checkpoint import keep_checkpoint, load_state, save_state
from engine.command.interrupt import Stop, stop_on_signal, until_stopped
from engine.command.progress import Advance, progress
from engine.compute.distributed import ALONE, Ranks
from engine.config import format_duration
from engine.errors import Diverged, UserError
from engine.run import Run
from engine.runs.saving import LastSave, Saving

SMALLEST_SCALE = 1 / 32  # of the learning rate: what diverges with that has another reason
LOG_EVERY = 10  # steps; each look at the losses waits for the device
SHORT = 20.0  # seconds: less than this is not worth a line


class EpochLoop:
    """Epochs of batches, from the current step to the end or to a signal.

    A child says what a batch, a step and the end of an epoch are. It calls `restore` at the end of its
    `__init__`, when everything that a checkpoint fills is there.

    Args:
        folder: the run folder.
        epochs: how many epochs the run has.
        ranks: the processes that run the loop together.
    """

    verb: ClassVar[str] = "train"  # what the progress bar says
    # Whether `after_epoch` and `finish` take long: after a signal they then wait for --resume.
    ends_take_long: ClassVar[bool] = False

    def __init__(self, folder: Run, epochs: int, ranks: Ranks = ALONE):
        self.folder, self.epochs, self.ranks = folder, epochs, ranks
        self.epoch, self.batches_done = 0, 0  # the current epoch, and its batches that are done
        self.step = 0  # steps done in all epochs
        self.pending: list[Tensor] = []  # losses that the host has not looked at
        self.saving = Saving()
        self.last_save = LastSave()
        self.score: float | None = (
            None  # of the epoch that ended, if it was evaluated; a higher one is better
        )
        self.best_score: float | None = None
        self.stopped = False  # whether a signal or --stop-after ended the loop, be it in the last step
        self.rolls_back = False  # whether a divergence lowers the learning rate instead of ending the run
        self.rate_scale = 1.0  # by which the learning rate is multiplied, where a child's `update` does so
        # Step and time at which the measurement of a step's time began; None: it has not begun, or is over.
        self.measured_from: tuple[int, float] | None = None
        self.rate_known = False
        self.loss_shape: torch.Size | None = None  # of the last step's losses

    def run(self) -> int:
        """From the current step to the end (returns 0), or to a signal (returns 130)."""
        with stop_on_signal() as stop, progress(self.verb, self.total_steps(), self.step) as advance:
            # A process that was killed in between wrote its last checkpoint, but did not keep it.
            self.keep_checkpoint(resumed=True)
            while self.epoch < self.epochs and not self.ends_early():
                try:
                    self.run_epoch(stop, advance)
                except Diverged as error:
                    self.roll_back(error)
                    continue
                # Also in the middle of an epoch, after a signal: `batches_done` says where to continue.
                self.save()
                self.last_save.now()
                self.keep_checkpoint()
                # Every rank asks, since a signal may have reached one of them only.
                self.stopped = self.ranks.any(stop.requested)
                if self.stopped and (self.epoch < self.epochs or self.ends_take_long):
                    print(f"stopped {self.place()}; continue with the same command and --resume")
                    return 130
        # Out of the block above: what takes long at the end can be interrupted at once and is done again.
        self.finish()
        return 0

    def run_epoch(self, stop: Stop, advance: Advance) -> None:
        """Run the batches that remain of the current epoch and what ends it; after a signal, stop early."""
        self.begin_epoch()
        # With several ranks a dead worker stays an error: a rank that just stopped would leave the others
        # waiting for its gradients.
        batches = until_stopped(self.batches(), stop) if self.ranks.size == 1 else self.batches()
        for first, second in batches:
            self.update(first, second)
            looks = self.step % LOG_EVERY == 0
            advance(self.log() if looks else "")
            # The losses that were just read are those of all steps so far: the device is up to date.
            if looks:
                self.estimate_time()
                self.save_in_epoch()
            if self.saving.time_is_over():
                stop.time_is_up()
            if self.ranks.any(stop.requested):
                break
        # Both raise before `save` runs, so that the last checkpoint on disk stays a good one.
        self.log()
        self.check_finite()
        complete = self.batches_done >= self.steps_in(self.epoch)
        if complete and not (self.ends_take_long and stop.requested):
            self.end_epoch()

    def done(self, losses: Tensor) -> None:
        """Count a step. Its losses, (L,) or (), averaged over the ranks, are looked at later."""
        # A step may train more networks than the one before: means of other losses go to a line of their own.
        if losses.shape != self.loss_shape:
            self.log()
            self.loss_shape, self.rate_known, self.measured_from = losses.shape, False, None
        self.pending.append(losses)
        self.batches_done, self.step = self.batches_done + 1, self.step + 1

    def estimate_time(self) -> None:
        """Print how long the rest will take, once; again where steps begin to do more, or less.

        The first ten steps are not measured, since they also allocate and compile.
        """
        if self.rate_known:
            return
        now = time.monotonic()
        if self.measured_from is None:
            self.measured_from = (self.step, now)
            return
        step, began = self.measured_from
        seconds = (now - began) / (self.step - step)
        left = seconds * (self.total_steps() - self.step)
        self.rate_known, self.measured_from = True, None
        if left >= SHORT:
            print(
                f"about {format_duration(left)} left: {self.total_steps() - self.step} steps of "
                f"{seconds:.2g} s; evaluations come on top"
            )

    def log(self) -> str:
        """Log the means of the losses of all steps since the last call.

        Returns:
            A note for the progress bar.

        Raises:
            UserError: a loss is not finite.
        """
        if not self.pending:
            return ""
        # One stack and one copy, so that the host waits for the device once for all pending steps.
        losses = torch.stack(self.pending).cpu()
        losses_SL = losses.view(len(losses), -1)  # a step with a single loss, (), gets one column
        first = self.step - len(losses)
        self.pending = []
        bad = (~losses_SL.isfinite()).any(1).nonzero()
        if len(bad):
            self.diverged("loss is", first + int(bad[0, 0]))
        point, note = self.metrics(losses_SL.mean(0).tolist())
        if self.ranks.first:
            self.folder.log(step=self.step, epoch=self.epoch, **self.logged_beside(), **point)
        return note

    def check_finite(self) -> None:
        """Refuse learned tensors that are not finite.

        The losses alone do not show it: the last update may have broken a tensor that no loss has used yet.

        Raises:
            UserError: a learned tensor is not finite.
        """
        for what, tensors in self.learned().items():
            # A sum is not finite if an entry is not: one number a tensor, read from the device in one go.
            sums = [tensor.detach().float().sum() for tensor in tensors]
            if sums and not bool(torch.stack(sums).isfinite().all()):
                self.diverged(what, self.step)

    def diverged(self, what: str, step: int) -> NoReturn:
        """Raise the error that says at which step `what` stopped being finite, and what to do.

        Args:
            what: subject and verb of the sentence, such as "weights are".
            step: the step, from 0.

        Raises:
            Diverged: always.
        """
        raise Diverged(
            f"The {what} not finite at step {step} (epoch {self.epoch + 1}); start again with "
            f"{self.divergence_hint(step)}. The last good checkpoint, if any, stays in '{self.folder.path}'."
        )

    def roll_back(self, error: Diverged) -> None:
        """Go back to the last checkpoint and continue with half the learning rate.

        Raises:
            Diverged: `error`, if that is not wanted, there is no checkpoint, or lower rates did not help.
        """
        scale = self.rate_scale / 2
        if not self.rolls_back or scale < SMALLEST_SCALE or not (self.folder.path / "state.pt").exists():
            raise error
        self.pending = []
        self.restore()
        self.rate_scale = scale
        what = str(error).split(";")[0]
        print(f"{what}: back at step {self.step}, with the learning rate times {scale:g} from here on")
        if self.ranks.first:
            self.folder.log(step=self.step, epoch=self.epoch, rate_scale=scale, rollback=what)
        # So that a resumed run does not try the higher rate again.
        self.save()

    def end_epoch(self) -> None:
        """Run what comes after the last batch of an epoch; then the next epoch becomes the current one."""
        self.score = None
        self.after_epoch()
        if self.score is not None and (self.best_score is None or self.score >= self.best_score):
            self.best_score = self.score
        self.epoch, self.batches_done = self.epoch + 1, 0

    def save(self) -> None:
        """Write state.pt, which `--resume` reads. The first rank writes it for all ranks."""
        if self.ranks.first:
            position: dict[str, Any] = {
                "step": self.step,
                "epoch": self.epoch,
                "batches_done": self.batches_done,
            }
            # Not the step: at one step a point may be logged before its checkpoint, or after.
            position["points"] = self.folder.points_logged()
            position |= {"score": self.score, "best_score": self.best_score, "rate_scale": self.rate_scale}
            save_state(self.folder.path / "state.pt", position | self.state())

    def save_in_epoch(self) -> None:
        """Save if the last checkpoint is too long ago; the losses were just looked at."""
        # Where nothing is left of the epoch, what ends it saves anyway.
        late = self.last_save.seconds_ago() >= self.saving.every
        if late and self.batches_done < self.steps_in(self.epoch):
            self.check_finite()
            self.save()
            self.last_save.now()

    def keep_checkpoint(self, resumed: bool = False) -> None:
        """Keep the checkpoint of an epoch's end under a name of its own, if more than one is to stay.

        Args:
            resumed: whether the checkpoint was there before: then it may have been kept already.
        """
        at_end = self.step and self.batches_done == 0
        if at_end and self.ranks.first and self.saving.keep > 1:
            best = self.score is not None and self.score == self.best_score
            keep_checkpoint(self.folder.path, self.epoch, self.saving.keep, best, resumed)

    def restore(self) -> None:
        """Continue from state.pt, if the run has one.

        Raises:
            UserError: it is of another run, or other ranks do not see it.
        """
        path, points = self.folder.path / "state.pt", 0
        if path.exists():
            state = load_state(path)
            try:
                self.load(state)
                self.step, self.epoch = int(state["step"]), int(state["epoch"])
                self.batches_done, points = int(state["batches_done"]), int(state["points"])
                self.score, self.best_score = state["score"], state["best_score"]
                self.rate_scale = float(state["rate_scale"])
            except (KeyError, RuntimeError, ValueError, TypeError):  # what loading another run's state raises
                raise UserError(
                    f"Resume state '{path}' is not of this run; start again with --overwrite."
                ) from None
            print(f"resumed {self.resumed_place()}")
        if self.ranks.first:
            self.folder.forget_after(points)  # logged by a process that was killed before its checkpoint
        # Ranks of different steps would wait for each other's gradients, or mix up different weights.
        if self.ranks.total([self.step]) != [self.step * self.ranks.size]:
            raise UserError(
                f"Not every process sees the checkpoint in '{self.folder.path}'; --out must be a folder that "
                "all machines share."
            )

    def total_steps(self) -> int:
        """Steps of the whole run."""
        remaining = sum(self.steps_in(epoch) for epoch in range(self.epoch, self.epochs))
        # `step` and `remaining` both hold the batches of the current epoch that are done.
        return self.step - self.batches_done + remaining

    def place(self) -> str:
        """Where the run is, for messages."""
        return f"at step {self.step} of {self.total_steps()}"

    def resumed_place(self) -> str:
        """Where a resumed run begins, for messages."""
        return self.place()

    # What a child must define.

    def steps_in(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        raise NotImplementedError

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """The batches of the current epoch that are not done."""
        raise NotImplementedError

    def update(self, first: Any, second: Any, /) -> None:
        """One step on the two halves of a batch, such as images and labels. It ends with `done`."""
        raise NotImplementedError

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """What metrics.jsonl gets for the mean losses (L,) of some steps, and a note for the progress bar."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What `--resume` needs beside the position in the run."""
        raise NotImplementedError

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned in an earlier process."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called when all epochs are done: write what remains, and DONE last."""
        raise NotImplementedError

    def divergence_hint(self, step: int) -> str:
        """What to change if the losses stop being finite at `step`."""
        raise NotImplementedError

    # What a child may define.

    def begin_epoch(self) -> None:
        """Called before the first batch of an epoch; after a resume, before the first that remains."""

    def after_epoch(self) -> None:
        """Called after the last batch of an epoch, before the position moves to the next one."""

    def ends_early(self) -> bool:
        """Whether the run ends now, without the epochs that remain."""
        return False

    def learned(self) -> dict[str, list[Tensor]]:
        """Tensors that must stay finite, by how an error speaks of them, such as "weights are"."""
        return {}

    def logged_beside(self) -> dict[str, Any]:
        """Further values that are logged together with the losses."""
        return {}
