"""What all commands that train a network on images share.

These are their settings, their start by one or several processes, and their loop (a child of
`engine.loop.EpochLoop`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.checkpoint import save_weights
from engine.command.launch import started
from engine.command.looping import LoopCommand
from engine.compute.device import device_facts, use_threads
from engine.compute.distributed import Ranks, join
from engine.compute.precision import (
    USUAL_PRECISION,
    TrainingPrecision,
    describe_precision,
    precision_on,
    training_in,
)
from engine.config import are, counted
from engine.data.balance import describe_balance, describe_counts
from engine.data.dataset import SPLITS, Data
from engine.data.digits import Digits
from engine.data.sources import DataConfig, load_data
from engine.data.text import FEWEST_ROWS
from engine.errors import UserError
from engine.loop import EpochLoop
from engine.optim import SGD, current_rate, load_optimizer
from engine.run import WEIGHTS, Run
from engine.runs.lock import write_lock

# Settings that are decided when the images are read: see `TrainingCommand.fit_batch`.
UNDECIDED = frozenset({"batch_size"})


class TrainingCommand(LoopCommand):
    """The settings that all trainings have. Each command adds its own settings, a docstring and `train`."""

    many_processes: ClassVar[bool] = True
    usual_precision: ClassVar[TrainingPrecision] = USUAL_PRECISION  # of layers on a GPU
    cpu_has_bf16: ClassVar[bool] = False  # whether --precision bf16 means something on a CPU
    static_shapes: ClassVar[bool] = False  # whether every step has the same shapes
    module: ClassVar[str]  # the name that python -m takes, for errors that say what to type
    out: Path = Field(description="run folder to write")
    data: DataConfig = Field(Digits(), description="the images")
    epochs: int = Field(40, ge=1, description="passes over the training images")
    batch_size: int = Field(64, ge=2, description="images a step, of all processes together")
    sgd: SGD = Field(SGD(), description="the optimiser and its learning rate")
    evaluate_every: int = Field(10, ge=1, description="epochs between evaluations on the validation split")
    seed: int = Field(
        0, ge=0, description="seed of all random draws: weights, order, augmentation, steps, validation split"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: TrainingPrecision | None = Field(
        None,
        description=(
            "what layers compute in on a GPU while they train: float32, tf32 or bf16; none: bf16, or the "
            "next best that the GPU has. A CPU trains, and every device evaluates, in float32"
        ),
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads; none: torch decides. Tiny networks are fastest with 1"
    )
    ranks: int | None = Field(
        None,
        ge=1,
        description="processes that train together, started by torchrun; none: as many as it started",
    )
    resume: bool = Field(False, description="continue the run in --out if there is one")
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    def execute(self) -> int:
        """Train, together with the other processes if torchrun started several."""
        size = started()[1]
        if self.ranks not in (None, size):
            raise UserError(
                f"This run is trained by {counted(self.ranks or 1, 'process')}, but {size} started; start "
                f"it with torchrun --nproc-per-node {self.ranks} -m {self.module}, or give --ranks {size} "
                "and another --out."
            )
        # The first rank is the one that writes.
        with join(self.device) as (ranks, device), self.write_lock() if ranks.first else nullcontext():
            use_threads(self.threads)
            precision = self.precision_on(device)
            said = describe_precision(device, precision, self.precision, self.usual_precision)
            if said:
                print(said)
            # config.yaml then records the number, without which the run cannot be continued or replayed.
            config = self.model_copy(update={"ranks": size})
            with training_in(precision, self.static_shapes):
                return config.train(ranks, device)

    def precision_on(self, device: torch.device) -> TrainingPrecision:
        """What layers compute in while they train on `device`."""
        return precision_on(device, self.precision, self.usual_precision, self.cpu_has_bf16)

    def write_lock(self) -> AbstractContextManager[None]:
        """The lock of the folder that the command writes."""
        return write_lock(self.out)

    def may_grow(self) -> frozenset[str]:
        """Settings that `--resume` may raise: a run of 40 epochs, finished or not, becomes one of 80."""
        return frozenset({"epochs"})

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train as rank `ranks.rank` on `device`; return the exit status."""
        raise NotImplementedError

    def finished_before(self, ranks: Ranks) -> bool:
        """Whether the run in --out is finished already. Every command asks before it reads its images.

        What `start` would refuse is refused here: to list and check 20,000 images takes most of a minute.

        Raises:
            UserError: as `start` raises it.
        """
        self.check_trackers()
        finished = False
        if ranks.first:
            self._check_ranks(ranks)
            run = Run(self.out)
            continues = run.check(
                self,
                resume=self.resume,
                overwrite=self.overwrite,
                undecided=UNDECIDED,
                may_grow=self.may_grow(),
            )
            finished = continues and run.finished and not run.grown(self, self.may_grow())
        # The first rank decides for all, so that none goes on alone.
        return ranks.any(finished)

    def _check_ranks(self, ranks: Ranks) -> None:
        """Refuse to continue a run with another number of processes."""
        before: Any = ranks.size
        if self.resume and (self.out / "config.yaml").exists():
            before = Run(self.out).config.get("ranks")
        if before != ranks.size:
            raise UserError(
                f"Run '{self.out}' is trained by {counted(before, 'process')}, not {ranks.size}, and others "
                f"would draw differently; resume it with torchrun --nproc-per-node {before} -m "
                f"{self.module}, or choose another folder with --out."
            )

    def load_images(self, ranks: Ranks, device: torch.device) -> Data:
        """Load the images. The first rank does it before the others, since it may download them.

        Raises:
            UserError: the data cannot be used.
        """
        with ranks.first_before_others():
            return load_data(self.data, device, self.seed)

    def fit_batch(self, data: Data, ranks: Ranks) -> Self:
        """These settings with a batch that is no larger than the training images; a smaller one is printed.

        Recipes choose a batch for many images. Whoever has few is served by one batch an epoch, as by any
        loader of images. `start` then records the batch that is used, so a resumed run has the same one.

        Raises:
            UserError: the batch cannot be divided among the ranks.
        """
        images = data.count("train")
        # A multiple of the ranks, since all get equal shares.
        most = images // ranks.size * ranks.size
        fitting = fitting_batch(self.batch_size, most, "images", f"{images} training images")
        ranks.share(fitting)  # refused now, not in the first step
        return self if fitting == self.batch_size else self.model_copy(update={"batch_size": fitting})

    def start(self, ranks: Ranks, device: torch.device) -> Run:
        """The run folder of a training on `device`, created or continued by the first rank.

        Raises:
            UserError: the folder is another run's, or its run has another number of processes.
        """
        # First, so that a package that is missing leaves no new folder behind.
        self.check_trackers()
        run = Run(self.out)
        if ranks.first:
            self._check_ranks(ranks)
            facts: dict[str, Any] = {
                "rank_seeds": [ranks.seed(self.seed, rank) for rank in range(ranks.size)]
            }
            # torch adds up in another order with another number of threads, or on another device, so a replay
            # may then differ in the last bit.
            facts |= device_facts(device, self.precision_on(device))
            if self.resume and (self.out / "config.yaml").exists():
                self._say_grown(run)
            run = Run.start(
                self.out,
                self,
                resume=self.resume,
                overwrite=self.overwrite,
                facts=facts,
                may_grow=self.may_grow(),
            )
            self.mirror(run)
        return run

    def _say_grown(self, run: Run) -> None:
        """Print what more epochs mean, if there are to be more."""
        for name, before in run.grown(self, self.may_grow()).items():
            print(
                f"{name} = {getattr(self, name)} instead of {before}: learning rates are now those of the "
                f"longer run, so they rise again; what later stages wrote in '{self.out}' is outdated"
            )

    def introduce(self, data: Data) -> None:
        """Print which images are used, how many of each class, and where."""
        images = ", ".join(f"{data.count(split)} {split}" for split in SPLITS)
        processes = f", {self.ranks} processes" if (self.ranks or 1) > 1 else ""
        where = str(data.device)
        if data.device.type == "cuda":
            where += f" in {self.precision_on(data.device)}"
        print(f"{len(data.classes)} classes; images: {images}; device {where}{processes}")
        print_classes(data)
        # A sampler draws some images twice in an epoch and others not at all.
        if data.config.balance != "sampler":
            print_left_out(data.count("train"), self.batch_size)


def fitting_batch(asked: int, most: int, unit: str, there_are: str) -> int:
    """The batch that is asked for, or the largest possible one, which is then printed.

    Args:
        asked: the size of a batch.
        most: the largest one that what is there can fill.
        unit: what both count, such as "images".
        there_are: what there is, for the sentence: "12 training images".
    """
    if asked <= most:
        return asked
    print(f"A batch is {most} {unit} instead of {asked}, since there are only {there_are}.")
    return most


def fitting_columns(asked: int, *words_N: Tensor) -> int:
    """As `fitting_batch`, in columns of texts that are read side by side (`engine.data.text.columns`)."""
    words = min(map(len, words_N))
    # Fewer are no batch: a text that is too short for them is refused by `columns`.
    most = max(2, words // FEWEST_ROWS)
    return fitting_batch(asked, most, "columns of text", f"{words} words")


def print_left_out(images: int, batch_size: int) -> None:
    """Print how many images of an epoch fill no batch, if there are any."""
    batches, left_out = divmod(images, batch_size)
    if left_out:
        print(
            f"an epoch: {counted(batches, 'batch')} of {batch_size}; {counted(left_out, 'image')} "
            f"{are(left_out)} left over and not used, others in each epoch"
        )


def print_classes(data: Data) -> None:
    """Print how images were split, how many training images each class has, and what is done about it."""
    for note in data.notes:
        print(note)
    counts_K = data.class_counts()
    if counts_K is not None:
        print(describe_counts(data.classes, counts_K))
        said = describe_balance(data.classes, counts_K, data.config.balance)
        if said:
            print(said)


class Training(EpochLoop):
    """The training of a network on images. A child defines what a step and an evaluation are.

    Args:
        command: the settings.
        run: the run folder.
        network: what is trained; it is moved to the device of `data`, channels_last.
        data: the images.
        ranks: the processes that train together.
        epochs: passes over the training images.

    A child sets `optimizer` and whatever else `checkpoint_objects` names, then calls `restore`.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self, command: TrainingCommand, run: Run, network: nn.Module, data: Data, ranks: Ranks, epochs: int
    ):
        super().__init__(run, epochs, ranks)
        self.saving = command.saving
        self.command, self.data = command, data
        # channels_last is what `engine.compute.fast` works on. In the default layout a step on CPU took 1.4
        # to 2 times as long (benchmarks/records/2026-11-22-epyc-2-cores.md).
        self.network = network.to(data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps = data.steps(command.batch_size)
        self.total = epochs * self.steps

    def update(self, x: Tensor, y: Tensor, /) -> None:
        """One optimiser step on this rank's share of a batch, which ends with `done`."""
        raise NotImplementedError

    def evaluate(self, epoch: int, last: bool) -> None:
        """Measure on the validation split and log it; every rank calls this.

        Args:
            epoch: the epoch that ended.
            last: whether it was the last one; then the result is also printed.
        """
        raise NotImplementedError

    def checkpoint_objects(self) -> dict[str, Any]:
        """What `--resume` needs beside the step: things with a state_dict, by name."""
        return {"network": self.network, "optimizer": self.optimizer}

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The weights that are handed on."""
        return self.network.state_dict()

    def steps_in(self, epoch: int) -> int:
        """Every epoch has the same number of batches."""
        return self.steps

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """This rank's share of the images and labels that remain of the epoch."""
        return self.data.train_batches(
            self.command.batch_size, self.epoch, skip=self.batches_done, ranks=self.ranks
        )

    def after_epoch(self) -> None:
        """Evaluate after every `evaluate_every` epochs and after the last one."""
        last = self.epoch + 1 == self.epochs
        if last or (self.epoch + 1) % self.command.evaluate_every == 0:
            self.evaluate(self.epoch, last)

    def learned(self) -> dict[str, list[Tensor]]:
        """The network's parameters."""
        return {"weights are": list(self.network.parameters())}

    def logged_beside(self) -> dict[str, Any]:
        """The learning rate."""
        return {"lr": current_rate(self.optimizer)}

    def save(self) -> None:
        """Checkpoint: weights.safetensors to use, state.pt to resume."""
        if self.ranks.first:
            save_weights(self.folder.path / WEIGHTS, self.exported_state_dict())
        super().save()

    def state(self) -> dict[str, Any]:
        """The state_dict of every checkpoint object."""
        return {name: part.state_dict() for name, part in self.checkpoint_objects().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Give each checkpoint object its state_dict back."""
        for name, part in self.checkpoint_objects().items():
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])

    def finish(self) -> None:
        """The weights are saved already, unless somebody removed the file of a finished run."""
        if self.ranks.first:
            weights = self.folder.path / WEIGHTS
            if not weights.exists():
                save_weights(weights, self.exported_state_dict())
            self.folder.finish()
