"""Train one weight-sharing supernet: every subnet good without retraining.

BigNAS (2020, arXiv:2003.11142): sandwich rule and in-place distillation, in one stage; AttentiveNAS and
AlphaNet are choices of the step (`ofa.training.sandwich`). OFA's progressive shrinking is a list of phases
(`ofa.training.phases`). The optimiser is SGD (BigNAS: RMSProp).
"""

import time
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.checkpoint import save_weights
from engine.command.cli import main
from engine.command.start import say
from engine.compute.distributed import ALONE, Ranks
from engine.config import format_count
from engine.data.augment import resize
from engine.data.dataset import Data
from engine.model import write_model
from engine.optim import build_sgd, clip_gradients, learning_rate, set_learning_rate
from engine.run import Run
from engine.seed import derive, numpy_generator
from engine.statistics import format_accuracy
from engine.training import Training, TrainingCommand
from ofa.blocks.elastic import join_batch_norms
from ofa.calibration import EVALUATION_BATCH, prepare, subnet_accuracy
from ofa.cost import cost_of
from ofa.space.arch import Arch, largest, single_arch_space, smallest
from ofa.space.codes import sample
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.trained import model_of, open_source, run_flag, start_from
from ofa.training.losses import SoftCrossEntropy
from ofa.training.phases import (
    TEACHER,
    Phase,
    drawn_resolution,
    grows,
    phase_position,
    read_teacher,
    shrinking_step,
    sort_channels,
)
from ofa.training.sampling import Attentive, BatchLoss, Sampler, Uniform, build_sampler
from ofa.training.sandwich import Sandwich, Seeds, label_step, sandwich_step


class Train(TrainingCommand):
    """Train one weight-sharing supernet on images; every subnet in it is then good without retraining.

    A recipe (--config) holds the settings; flags change single ones. FLOPs means multiply-accumulates (MACs).

    examples:
      python -m ofa.train                                      the embedded digits, about 2 minutes
      python -m ofa.train --config ofa/imagefolder --data.path photos --out runs/photos
      python -m ofa.train --config ofa/cifar10 --out runs/cifar10 --epochs 50 --resume
      torchrun --nproc-per-node 2 -m ofa.train --config ofa/cifar10     two GPUs, half of each batch on each
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--config",
        "--out",
        "--data.name",
        "--data.path",
        "--space",
        "--init",
        "--epochs",
        "--batch-size",
        "--device",
        "--resume",
    )

    module: ClassVar[str] = "ofa.train"
    config: str | None = Field(
        "ofa/digits", description="recipe: a YAML file, or a packaged name such as ofa/cifar10"
    )
    out: Path = Field(Path("runs/supernet"), description="run folder to write")
    space: str | None = Field(
        None, description="search space: a packaged name or a YAML file; none: that of --init, else digits"
    )
    init: Path | None = Field(
        None,
        description="start from the weights of this run; for another number of classes the classifier is new",
    )
    arch: str | None = Field(
        None,
        description=(
            "train this architecture alone, from labels, instead of a supernet: smallest, largest, a JSON "
            "file or JSON"
        ),
    )
    epochs: int = Field(40, ge=1, description="passes over the training images; phases have their own")
    phases: tuple[Phase, ...] = Field(
        (),
        description=(
            "progressive shrinking (OFA) instead of the sandwich rule: a list in a recipe such as "
            "ofa/ofa_mbv3"
        ),
    )
    sandwich: Sandwich = Field(
        Sandwich(), description="the step: who is trained, who teaches, who is regularised"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay a step of a running average of the weights, which is then evaluated and saved",
    )
    evaluate_random: int = Field(
        2, ge=0, description="fixed random subnets evaluated beside the smallest and the largest"
    )
    calibration_images: int = Field(
        2000, ge=2, description="training images for the exact BatchNorm statistics of a subnet"
    )
    same_subnets: bool = Field(
        False, description="all processes train the same random subnets in a step; off: each draws its own"
    )
    sync_bn: bool = Field(
        False, description="BatchNorm statistics are of all processes' images; needs --same-subnets"
    )

    @model_validator(mode="after")
    def _phases_shrink_a_supernet(self) -> Self:
        if self.phases and self.arch:
            raise ValueError(
                "phases shrink a supernet and arch trains one architecture alone; give one of them"
            )
        if self.phases and self.sync_bn:
            raise ValueError(
                "sync_bn is not for phases: the teacher's BatchNorm sees the images of its own process; "
                "leave it out"
            )
        step = self.sandwich
        if self.phases and (step.sampling != Uniform() or step.distillation != SoftCrossEntropy()):
            raise ValueError(
                "phases draw uniformly from what they open and distil by soft cross-entropy; leave sampling "
                "and distillation"
            )
        return self

    @property
    def all_epochs(self) -> int:
        """Passes over the training images, of all phases."""
        return sum(phase.epochs for phase in self.phases) or self.epochs

    @model_validator(mode="after")
    def _one_statistic_needs_one_architecture(self) -> Self:
        sampling = self.sandwich.sampling
        judged = isinstance(sampling, Attentive) and isinstance(sampling.judge, BatchLoss)
        if self.same_subnets and judged:
            raise ValueError(
                "same_subnets cannot hold where each process judges by the loss on its own images; judge by "
                "predicted"
            )
        if self.sync_bn and not (self.same_subnets or self.arch):
            raise ValueError(
                "sync_bn averages statistics of one architecture, but each process has its own; add "
                "--same-subnets"
            )
        return self

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train as rank `ranks.rank` on `device`; return the exit status."""
        source = open_source(self.init, self.space) if self.init else None
        space = source.space if source else load_space(self.space or "digits")
        arch = find_arch(space, self.arch) if self.arch else None
        single_arch = None
        if arch:
            # The same network, but as the only one of a space of its own, in which it is the largest.
            space = single_arch_space(space, arch)
            single_arch = largest(space)
        data = self.load_images(ranks, device)
        config = self.fit_batch(data, ranks)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(self.seed, "weights"))
            supernet = Supernet(space, len(data.classes), data.channels)
        if source:
            start_from(supernet, source, arch)
        # A single architecture has nothing to draw: no tables are estimated for it.
        sampling = Uniform() if single_arch else self.sandwich.sampling
        sampler = build_sampler(sampling, space, len(data.classes), data.channels)
        run = config.start(ranks)
        # The first rank decides for all, so that none goes on alone.
        if ranks.any(ranks.first and run.finished):
            print(f"{run.path} is finished already.")
            return _next(run.path, single_arch)
        _introduce(config, space, data, single_arch)
        if ranks.first:
            model = model_of(space, single_arch, data, self.calibration_images)
            write_model(run.path / "model.json", model, "space")
        trainer = Trainer(config._for_blocks(arch), run, supernet, data, single_arch, sampler, ranks)
        return trainer.run() or _next(run.path, single_arch)

    def _for_blocks(self, arch: Arch | None) -> "Train":
        """This configuration for the space that is trained.

        In the space of a single architecture each block is a stage of its own: what were the last n stages
        are more stages there.
        """
        last = self.sandwich.drop_connect_stages
        if arch is None or last is None:
            return self
        sandwich = self.sandwich.model_copy(update={"drop_connect_stages": sum(arch.depth[-last:])})
        return self.model_copy(update={"sandwich": sandwich})


class Trainer(Training):
    """The state of a training run: weights, their average, the optimiser and the number of steps done."""

    def __init__(
        self,
        config: Train,
        run: Run,
        supernet: Supernet,
        data: Data,
        single_arch: Arch | None,
        sampler: Sampler,
        ranks: Ranks = ALONE,
    ):
        super().__init__(config, run, supernet, data, ranks, config.all_epochs)
        self.config, self.single_arch, self.sampler, self.supernet = config, single_arch, sampler, supernet
        self.optimizer, self.average = build_sgd(config.sgd, supernet), self._new_average()
        self.teacher = read_teacher(run.path, supernet)
        # A single process keeps the layers that save memory: there is nothing to join.
        if config.sync_bn and ranks.size > 1:
            join_batch_norms(supernet)
        self.restore()  # last, since it fills what is made above

    def phase_at(self, step: int) -> Phase | None:
        """The phase of a step; None if the run has no phases."""
        phases = self.config.phases
        return phases[phase_position(phases, self.steps, step).phase] if phases else None

    def begin_epoch(self) -> None:
        """At the first step of a phase: keep the teacher, sort channels, make a new optimiser."""
        phases = self.config.phases
        if not phases:
            return
        number, start, _ = phase_position(phases, self.steps, self.step)
        if self.step != start:
            return
        phase = phases[number]
        if number and self.average:  # what the last phase ended with is its average
            self.supernet.load_state_dict(self.weights.state_dict())
        print(f"phase {number + 1} of {len(phases)}: {phase.name}, {phase.epochs} epochs")
        # Saved to a file: a resumed run has no other way to know the network of the first phase's end.
        if phase.subnets and self.teacher is None:
            self.teacher = extract(self.supernet, largest(self.supernet.space))
            if self.ranks.first:
                save_weights(self.folder.path / TEACHER, self.teacher.state_dict())
        if number and grows(phases[number - 1], phase, self.supernet.space):
            sort_channels(self.supernet, phases[number - 1])
        # New ones, as in the reference code; besides, momentum and average are of channels in the old order.
        self.optimizer, self.average = build_sgd(self.config.sgd, self.supernet), self._new_average()

    def _new_average(self) -> AveragedModel | None:
        if self.config.ema is None:
            return None
        average = get_ema_multi_avg_fn(self.config.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(self.supernet, multi_avg_fn=average)

    def update(self, x: Tensor, y: Tensor) -> None:
        """One optimiser step on one batch."""
        self._set_learning_rate()
        self.optimizer.zero_grad()
        losses = self._add_gradients(x, y)
        losses = self.ranks.average_gradients(self.supernet.parameters(), losses)
        clip_gradients(self.config.sgd, self.supernet)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.supernet)
        self.done(losses)

    def _set_learning_rate(self) -> None:
        """The rate of this step; every phase has a warm-up and a decay of its own."""
        sgd, start, end = self.config.sgd, 0, self.total
        phase = self.phase_at(self.step)
        if phase is not None:
            _, start, end = phase_position(self.config.phases, self.steps, self.step)
            sgd = sgd.model_copy(update={"lr": phase.lr, "warmup_epochs": phase.warmup_epochs})
        warmup = round(sgd.warmup_epochs * self.steps)
        set_learning_rate(self.optimizer, learning_rate(sgd, self.step - start, end - start, warmup))

    def _add_gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Add one step's gradients by the kind of training that this run is, and return its losses (L,)."""
        config, supernet, step = self.config, self.supernet, self.step
        # Images differ between ranks, so their noise must differ, too; subnets may be the same.
        own = self.ranks.seed(config.seed)
        seeds = Seeds(subnets=config.seed if config.same_subnets else own, noise=own)
        phase = self.phase_at(step)
        if phase is not None:
            # The teacher sees the same images as the subnets, so all share one resolution per step.
            x = resize(x, drawn_resolution(supernet.space, config.seed, step))
            return shrinking_step(supernet, self.teacher, x, y, step, phase, config.sandwich, seeds)
        if self.single_arch is not None:
            _, loss = label_step(supernet, self.single_arch, x, y, config.sandwich, (own, step))
            return loss[None]
        return sandwich_step(supernet, x, y, step, config.sandwich, self.sampler, seeds)

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss of the largest comes first, then those of the others, the smallest last."""
        note = f"loss {losses[0]:.3f}" + (f"  smallest {losses[-1]:.3f}" if losses[1:] else "")
        return {"loss": losses[0], "distillation": losses[1:]}, note

    def divergence_hint(self, step: int) -> str:
        """Name the learning rate to lower: that of the phase if there are phases."""
        phase = self.phase_at(step)
        if phase is None:
            return f"a lower --sgd.lr (now {self.config.sgd.lr}) or a longer --sgd.warmup-epochs"
        return f"a lower lr (now {phase.lr}) or more warmup_epochs in phase '{phase.name}'"

    def evaluate(self, epoch: int, last: bool) -> None:
        """Validation accuracy of the smallest, the largest and a few fixed random subnets.

        Each subnet is recalibrated and measured by one of the ranks.
        """
        started = time.monotonic()
        data, images = self.data, self.config.calibration_images
        archs = self._evaluated()
        scores = [0.0] * len(archs)
        # Each rank measures every n-th architecture and leaves 0 for the others; the sum has all scores.
        for i in range(self.ranks.rank, len(archs), self.ranks.size):
            subnet = prepare(self.weights, list(archs.values())[i], data, images)
            scores[i] = subnet_accuracy(subnet, data.batches("val", EVALUATION_BATCH))
        scores = self.ranks.total(scores)
        if not self.ranks.first:
            return
        for (name, arch), score in zip(archs.items(), scores, strict=True):
            macs, params = cost_of(self.supernet.space, arch, len(data.classes), data.channels)
            self.folder.log(
                step=self.step, epoch=epoch, arch=name, val_accuracy=score, macs=macs, params=params
            )
            if last:
                said = format_accuracy(score, data.count("val"))
                print(f"  {name:9} {format_count(macs):>6} MACs  {said} on validation")
        if last:
            print(f"  ({time.monotonic() - started:.1f} s for {len(archs)} evaluations)")

    def _evaluated(self) -> dict[str, Arch]:
        """The architectures that an evaluation measures, by name; in a phase, only from its open choices."""
        if self.single_arch is not None:
            return {"alone": self.single_arch}  # its name in metrics.jsonl and in exported files
        space, rng = self.supernet.space, numpy_generator(self.config.seed, "evaluated subnets")
        phase = self.phase_at(self.step - 1)  # the step before ended the epoch
        archs = {"smallest": phase.smallest(space) if phase else smallest(space), "largest": largest(space)}
        for i in range(self.config.evaluate_random):
            archs[f"random{i}"] = phase.sample(space, rng) if phase else sample(space, rng)
        return archs

    @property
    def weights(self) -> Supernet:
        """What is evaluated and handed on: the average if there is one."""
        if self.average is None:
            return self.supernet
        assert isinstance(self.average.module, Supernet)
        return self.average.module

    def checkpoint_objects(self) -> dict[str, Any]:
        """The supernet, the optimiser and, if there is one, the average."""
        parts = {"supernet": self.supernet, "optimizer": self.optimizer}
        return parts | ({"average": self.average} if self.average else {})

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The weights that are handed on: the average if there is one."""
        return self.weights.state_dict()


def _introduce(config: Train, space: Space, data: Data, single_arch: Arch | None) -> None:
    def macs(arch: Arch) -> str:
        return format_count(cost_of(space, arch, len(data.classes), data.channels)[0])

    if single_arch:
        print(f"space '{space.name}': one architecture, {macs(single_arch)} MACs")
    else:
        span = f"{macs(smallest(space))} to {macs(largest(space))}"
        print(f"space '{space.name}': {space.size():.3g} architectures, {span} MACs")
    config.introduce(data)
    if not single_arch and not config.phases:
        step = config.sandwich
        print(
            f"a step: largest, {step.random} random ({step.sampling.name}), smallest; distillation by "
            f"{step.distillation.name}"
        )


def _next(path: Path, single_arch: Arch | None) -> int:
    module = "export.onnx" if single_arch else "predictors.collect"
    say(f"next: python -m {module}{run_flag(path)}")
    return 0


if __name__ == "__main__":
    main(Train)
