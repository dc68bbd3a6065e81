"""What every command that trains shares: its settings, its start by one or several processes, and the loop
over epochs.

A run that is interrupted and resumed ends with the same weights as one that is not: whatever a step draws
comes from the run's seed and the step, and everything else is in state.pt. Losses stay on the device and are
looked at every few steps only.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.checkpoint import load_state, save_state, save_weights
from engine.command.cli import Command
from engine.command.interrupt import stop_on_signal, until_stopped
from engine.command.launch import started
from engine.command.progress import progress
from engine.compute.distributed import Ranks, join
from engine.data.dataset import SPLITS, Batch, Data
from engine.data.digits import Digits
from engine.data.sources import DataConfig, load_data
from engine.errors import UserError
from engine.optim import SGD
from engine.run import Run, tensorboard_writer

LOG_EVERY = 10


class TrainingCommand(Command):
    """The settings that all trainings have. A command adds its own, its docstring and `train`."""

    many_processes: ClassVar[bool] = True
    module: ClassVar[str]  # as in python -m
    out: Path = Field(description="run folder to write")
    data: DataConfig = Field(Digits(), description="the images")
    epochs: int = Field(40, ge=1, description="passes over the training images")
    batch_size: int = Field(64, ge=2, description="images a step, of all processes together")
    sgd: SGD = Field(SGD(), description="the optimiser and its learning rate")
    evaluate_every: int = Field(10, ge=1, description="epochs between evaluations on the validation split")
    seed: int = Field(
        0, ge=0, description="of weights, order, augmentation, other draws of a step and the validation split"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; none: torch decides. Tiny networks are fastest with 1"
    )
    ranks: int | None = Field(
        None,
        ge=1,
        description="processes that train together, started by torchrun; none: as many as it started",
    )
    tensorboard: bool = Field(
        False, description="write TensorBoard events too (needs the extra of that name)"
    )
    resume: bool = Field(False, description="continue the run in --out if there is one")
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    def execute(self) -> int:
        """Train; with the other processes that torchrun started, if it did."""
        size = started()[1]
        if self.ranks not in (None, size):
            raise UserError(
                f"This run is trained by {self.ranks} processes, but {size} started; start it with torchrun "
                "--nproc-per-node "
                f"{self.ranks} -m {self.module}, or give --ranks {size} and another --out."
            )
        with join(self.device) as (ranks, device):
            if self.threads:
                torch.set_num_threads(self.threads)
            return self.model_copy(update={"ranks": size}).train(ranks, device)

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train as rank `ranks.rank` on `device`; return the exit status."""
        raise NotImplementedError

    def load_images(self, ranks: Ranks, device: torch.device) -> Data:
        """The images. The first rank loads them before the others, since it may download them."""
        if not ranks.first:
            ranks.any(False)
        data = load_data(self.data, device, self.seed)
        if ranks.first:
            ranks.any(False)
        data.steps(self.batch_size)
        ranks.share(self.batch_size)  # both are refused now, not in the first step
        return data

    def start(self, ranks: Ranks) -> Run:
        """The run folder, created or continued by the first rank.

        Raises:
            UserError: it is another run's, or one of another number of processes.
        """
        writer = tensorboard_writer() if self.tensorboard else None
        run = Run(self.out)
        if ranks.first:
            before = (
                run.config.get("ranks") if self.resume and (self.out / "config.yaml").exists() else ranks.size
            )
            if before != ranks.size:
                raise UserError(
                    f"Run '{self.out}' is trained by {before} processes, not {ranks.size}, and others would "
                    "draw differently; resume it "
                    f"with torchrun --nproc-per-node {before} -m {self.module}, or choose another folder "
                    "with --out."
                )
            facts = {"rank_seeds": [ranks.seed(self.seed, rank) for rank in range(ranks.size)]}
            run = Run.start(self.out, self, resume=self.resume, overwrite=self.overwrite, facts=facts)
            if writer is not None and not run.finished:
                run.mirror_to_tensorboard(writer)
        return run

    def introduce(self, data: Data) -> None:
        """Print which images are used, and where."""
        images = ", ".join(f"{data.count(split)} {split}" for split in SPLITS)
        processes = f", {self.ranks} processes" if (self.ranks or 1) > 1 else ""
        print(f"{len(data.classes)} classes; images: {images}; device {data.device}{processes}")


class Training:
    """The state of a training run: weights, optimiser, number of steps done. A child says what a step and an
    evaluation are.

    Args:
        command: its settings.
        run: its folder.
        network: what is trained; moved to the device of `data`, channels_last.
        epochs: passes over the training images.

    A child sets `optimizer` and whatever else `parts` names, then calls `restore`.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self, command: TrainingCommand, run: Run, network: nn.Module, data: Data, ranks: Ranks, epochs: int
    ):
        self.command, self.folder, self.data, self.ranks, self.epochs = command, run, data, ranks, epochs
        self.network = network.to(data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps = data.steps(command.batch_size)
        self.total = epochs * self.steps
        self.step = 0
        self.pending: list[Tensor] = []  # losses that the host has not looked at

    def update(self, x: Tensor, y: Tensor) -> None:
        """One optimiser step on this rank's share of a batch, which ends with `done`."""
        raise NotImplementedError

    def evaluate(self, epoch: int, last: bool) -> None:
        """Measure on the validation split and log it; `last`: say it, too. Every rank is there."""
        raise NotImplementedError

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """What metrics.jsonl and what the progress bar says of the mean losses (L,) of some steps."""
        raise NotImplementedError

    def divergence_hint(self, step: int) -> str:
        """What to change if the losses stop being finite at `step`."""
        raise NotImplementedError

    def checkpoint_objects(self) -> dict[str, Any]:
        """What `--resume` needs beside the step: things with a state_dict, by name."""
        return {"network": self.network, "optimizer": self.optimizer}

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The weights that are handed on."""
        return self.network.state_dict()

    def done(self, losses: Tensor) -> None:
        """A step was made, with these losses (L,), averaged over the ranks; nobody looks at them yet."""
        self.pending.append(losses)
        self.step += 1

    def begin_epoch(self) -> None:
        """Called before the first batch of an epoch, and of the rest of an epoch after a resume."""

    def run(self) -> int:
        """From the current step to the end (0), or to a signal (130)."""
        every = self.command.evaluate_every
        with stop_on_signal() as stop, progress("train", self.total, self.step) as advance:
            for epoch in range(self.step // self.steps, self.epochs):
                self.begin_epoch()
                batches = self.data.train_batches(
                    self.command.batch_size, epoch, skip=self.step % self.steps, ranks=self.ranks
                )
                for x, y in until_stopped(batches, stop) if self.ranks.size == 1 else batches:
                    self.update(x, y)
                    advance(self.log(epoch) if self.step % LOG_EVERY == 0 else "")
                    if self.ranks.any(stop.requested):
                        break
                self.log(epoch)
                self.check_weights()
                last = self.step == self.total
                if last or (self.step % self.steps == 0 and (epoch + 1) % every == 0):
                    self.evaluate(epoch, last)
                self.save()
                if self.ranks.any(stop.requested) and not last:
                    print(
                        f"stopped at step {self.step} of {self.total}; continue with the same command and "
                        "--resume"
                    )
                    return 130
            if self.ranks.first:
                self.folder.finish()
        return 0

    def log(self, epoch: int) -> str:
        """Look at the losses since the last look: one host synchronisation. Returns a note for the progress
        bar.

        Raises:
            UserError: one of them is not finite.
        """
        if not self.pending:
            return ""
        losses_SL = torch.stack(self.pending).cpu()
        first = self.step - len(self.pending)
        self.pending = []
        bad = (~losses_SL.isfinite()).any(1).nonzero()
        if len(bad):
            self.diverged("loss is", first + int(bad[0, 0]))
        point, note = self.metrics(losses_SL.mean(0).tolist())
        if self.ranks.first:
            self.folder.log(step=self.step, epoch=epoch, lr=self.optimizer.param_groups[0]["lr"], **point)
        return note

    def check_weights(self) -> None:
        """The last update of an epoch may have broken the weights without a loss that shows it.

        Raises:
            UserError: a weight is not finite.
        """
        sums = torch.stack([p.detach().float().sum() for p in self.network.parameters()])
        if not bool(sums.isfinite().all()):
            self.diverged("weights are", self.step)

    def diverged(self, what: str, step: int) -> NoReturn:
        """Say at which step, and what to do."""
        raise UserError(
            f"The {what} not finite at step {step} (epoch {step // self.steps + 1}); start again with "
            f"{self.divergence_hint(step)}. "
            f"The last good checkpoint stays in '{self.folder.path}'."
        )

    def save(self) -> None:
        """Checkpoint: state.pt to resume, weights.safetensors to use. The first rank's is everybody's."""
        if self.ranks.first:
            save_weights(self.folder.path / "weights.safetensors", self.exported_state_dict())
            state = {name: part.state_dict() for name, part in self.checkpoint_objects().items()}
            save_state(self.folder.path / "state.pt", {"step": self.step} | state)

    def restore(self) -> None:
        """Continue from state.pt, if the run has one.

        Raises:
            UserError: it is of another run, or other ranks do not see it.
        """
        path = self.folder.path / "state.pt"
        if path.exists():
            state = load_state(path)
            try:
                for name, part in self.checkpoint_objects().items():
                    part.load_state_dict(state[name])
                self.step = int(state["step"])
            except (KeyError, RuntimeError, ValueError, TypeError):
                raise UserError(
                    f"Resume state '{path}' is not of this run; start again with --overwrite."
                ) from None
            if self.ranks.first:
                self.folder.forget_after(self.step)
            print(f"resumed at step {self.step} of {self.total}")
        if self.ranks.total([self.step]) != [self.step * self.ranks.size]:
            raise UserError(
                f"Not every process sees the checkpoint in '{self.folder.path}'; --out must be a folder that "
                "all machines share."
            )


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> float:
    """Share of images whose largest logit is the label's, in [0, 1]. Synchronises once, at the end."""
    hits, count = [], 0
    for x, y in batches:
        hits.append((network(x).argmax(1) == y).sum())
        count += len(y)
    return float(torch.stack(hits).sum()) / count
