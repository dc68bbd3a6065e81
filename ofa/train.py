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
from engine.compute.distributed import ALONE, Ranks
from engine.config import format_count
from engine.data.augment import resize
from engine.data.dataset import Data
from engine.model import write_model
from engine.optim import build_sgd, clip_gradients, learning_rate, set_learning_rate
from engine.run import Run
from engine.seed import derive, numpy_generator
from engine.training import Training, TrainingCommand
from ofa.blocks.elastic import join_batch_norms
from ofa.cost import cost_of
from ofa.space.space import Arch, Space, find_arch, largest, load_space, only, sample, smallest
from ofa.subnet import accuracy, extract, prepare
from ofa.supernet import Supernet
from ofa.trained import model_of, open_source, run_flag, start_from
from ofa.training.losses import SoftCrossEntropy
from ofa.training.phases import (
    TEACHER,
    Phase,
    Place,
    drawn_resolution,
    grows,
    place,
    read_teacher,
    shrinking_step,
    sort_channels,
)
from ofa.training.sampling import Attentive, BatchLoss, Sampler, Uniform, build_sampler
from ofa.training.sandwich import Sandwich, label_step, sandwich_step


class Train(TrainingCommand):
    """Train one weight-sharing supernet on images; every subnet in it is then good without retraining.

    A recipe (--config) holds the settings; flags change single ones. FLOPs means multiply-accumulates (MACs).

    examples:
      python -m ofa.train                                      the embedded digits, about 2 minutes
      python -m ofa.train --config ofa/imagefolder --data.path photos --out runs/photos
      python -m ofa.train --config ofa/cifar10 --out runs/cifar10 --epochs 50 --resume
      torchrun --nproc-per-node 2 -m ofa.train --config ofa/cifar10 --out runs/cifar10     two GPUs, half of
      each batch on each
    """

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
        description=(
            "start from the weights of this run, trained or converted; a classifier for other classes is "
            "fresh"
        ),
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
        description="decay a step of an average of the weights that is evaluated and saved instead",
    )
    evaluate_random: int = Field(
        2, ge=0, description="fixed random subnets evaluated beside the smallest and the largest"
    )
    calibration_images: int = Field(
        2000, ge=2, description="training images for the exact BatchNorm statistics of a subnet"
    )
    same_subnets: bool = Field(
        False, description="all processes train the same random subnets in a step, instead of each its own"
    )
    sync_bn: bool = Field(
        False, description="BatchNorm statistics of all processes' images; needs --same-subnets"
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
        if self.phases and (self.sandwich.sampling, self.sandwich.distillation) != (
            Uniform(),
            SoftCrossEntropy(),
        ):
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
        judged = isinstance(self.sandwich.sampling, Attentive) and isinstance(
            self.sandwich.sampling.judge, BatchLoss
        )
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
        """As rank `ranks.rank` on `device`."""
        source = open_source(self.init, self.space) if self.init else None
        space = source.space if source else load_space(self.space or "digits")
        chosen = find_arch(space, self.arch) if self.arch else None
        space = only(space, chosen) if chosen else space
        alone = largest(space) if chosen else None
        data = self.load_images(ranks, device)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(self.seed, "weights"))
            supernet = Supernet(space, len(data.classes), data.channels)
        if source:
            start_from(supernet, source, chosen)
        sampler = build_sampler(
            Uniform() if alone else self.sandwich.sampling, space, len(data.classes), data.channels
        )
        run = self.start(ranks)
        if ranks.any(ranks.first and run.finished):
            print(f"{run.path} is finished already.")
            return _next(run.path, alone)
        _introduce(self, space, data, alone)
        if ranks.first:
            write_model(
                run.path / "model.json", model_of(space, alone, data, self.calibration_images), "space"
            )
        return Trainer(self._for_blocks(chosen), run, supernet, data, alone, sampler, ranks).run() or _next(
            run.path, alone
        )

    def _for_blocks(self, chosen: Arch | None) -> "Train":
        """The same where each block of one architecture alone is a stage of its own: its last n stages are
        more."""
        last = self.sandwich.drop_connect_stages
        if chosen is None or last is None:
            return self
        sandwich = self.sandwich.model_copy(update={"drop_connect_stages": sum(chosen.depth[-last:])})
        return self.model_copy(update={"sandwich": sandwich})


class Trainer(Training):
    """The state of a training run: weights, their average, the optimiser and the number of steps done."""

    def __init__(
        self,
        config: Train,
        run: Run,
        supernet: Supernet,
        data: Data,
        alone: Arch | None,
        sampler: Sampler,
        ranks: Ranks = ALONE,
    ):
        super().__init__(config, run, supernet, data, ranks, config.all_epochs)
        self.config, self.alone, self.sampler, self.supernet = config, alone, sampler, supernet
        self.optimizer, self.average = build_sgd(config.sgd, supernet), self._new_average()
        self.teacher = read_teacher(run.path, supernet)
        if config.sync_bn and ranks.size > 1:
            join_batch_norms(supernet)
        self.restore()

    def begin_epoch(self) -> None:
        """At the first step of a phase: keep the teacher, sort channels that become elastic, start optimiser
        and average afresh."""
        phases = self.config.phases
        number, start, _ = place(phases, self.steps, self.step) if phases else Place(0, 0, 0)
        if not phases or self.step != start:
            return
        phase = phases[number]
        if number and self.average:  # what the last phase ended with is its average
            self.supernet.load_state_dict(self.weights.state_dict())
        print(f"phase {number + 1} of {len(phases)}: {phase.name}, {phase.epochs} epochs")
        if phase.subnets and self.teacher is None:
            self.teacher = extract(self.supernet, largest(self.supernet.space))
            if self.ranks.first:
                save_weights(self.folder.path / TEACHER, self.teacher.state_dict())
        if number and grows(phases[number - 1], phase, self.supernet.space):
            sort_channels(self.supernet, phases[number - 1])
        self.optimizer, self.average = build_sgd(self.config.sgd, self.supernet), self._new_average()

    def _new_average(self) -> AveragedModel | None:
        decay = self.config.ema
        return AveragedModel(self.supernet, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None  # type: ignore[no-untyped-call]

    def update(self, x: Tensor, y: Tensor) -> None:
        """One optimiser step on one batch."""
        config = self.config
        sgd, at = config.sgd, Place(0, 0, self.total)
        if config.phases:
            at = place(config.phases, self.steps, self.step)
            phase = config.phases[at.phase]
            sgd = sgd.model_copy(update={"lr": phase.lr, "warmup_epochs": phase.warmup_epochs})
        rate = learning_rate(
            sgd, self.step - at.start, at.end - at.start, round(sgd.warmup_epochs * self.steps)
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        own = self.ranks.seed(config.seed)
        subnets = config.seed if config.same_subnets else own
        if config.phases:
            x = resize(x, drawn_resolution(self.supernet.space, config.seed, self.step))
            losses = shrinking_step(
                self.supernet, self.teacher, x, y, phase, config.sandwich, subnets, self.step, own
            )
        elif self.alone is None:
            losses = sandwich_step(
                self.supernet, x, y, config.sandwich, self.sampler, subnets, self.step, own
            )
        else:
            losses = torch.stack(
                label_step(self.supernet, self.alone, x, y, config.sandwich, own, self.step)[1]
            )
        losses = self.ranks.average_gradients(self.supernet.parameters(), losses)
        clip_gradients(config.sgd, self.supernet)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.supernet)
        self.done(losses)

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The largest's loss first, then those of the others."""
        note = f"loss {losses[0]:.3f}" + (f"  smallest {losses[-1]:.3f}" if losses[1:] else "")
        return {"loss": losses[0], "distillation": losses[1:]}, note

    def divergence_hint(self, step: int) -> str:
        """A lower rate, of the phase if there are phases."""
        if not self.config.phases:
            return f"a lower --sgd.lr (now {self.config.sgd.lr}) or a longer --sgd.warmup-epochs"
        phase = self.config.phases[place(self.config.phases, self.steps, step).phase]
        return f"a lower lr (now {phase.lr}) or more warmup_epochs in phase '{phase.name}'"

    def evaluate(self, epoch: int, last: bool) -> None:
        """Validation accuracy of the smallest, the largest and a few fixed random subnets, each recalibrated
        by one of the ranks."""
        started = time.monotonic()
        config, data, space = self.config, self.data, self.supernet.space
        rng = numpy_generator(config.seed, "evaluated subnets")
        phase = (
            config.phases[place(config.phases, self.steps, self.step - 1).phase] if config.phases else None
        )
        archs = {"smallest": phase.smallest(space) if phase else smallest(space), "largest": largest(space)}
        archs |= {
            f"random{i}": phase.sample(space, rng) if phase else sample(space, rng)
            for i in range(config.evaluate_random)
        }
        if self.alone is not None:
            archs = {"alone": self.alone}
        scores = [0.0] * len(archs)
        for i, arch in list(enumerate(archs.values()))[self.ranks.rank :: self.ranks.size]:
            scores[i] = accuracy(prepare(self.weights, arch, data, config.calibration_images), data, "val")
        scores = self.ranks.total(scores)
        if not self.ranks.first:
            return
        for (name, arch), score in zip(archs.items(), scores, strict=True):
            macs, params = cost_of(space, arch, len(data.classes), data.channels)
            self.folder.log(
                step=self.step, epoch=epoch, arch=name, val_accuracy=score, macs=macs, params=params
            )
            if last:
                print(f"  {name:9} {format_count(macs):>6} MACs  {score:.2%} on validation")
        if last:
            print(f"  ({time.monotonic() - started:.1f} s for {len(archs)} evaluations)")

    @property
    def weights(self) -> Supernet:
        """What is evaluated and handed on: the average if there is one."""
        if self.average is None:
            return self.supernet
        assert isinstance(self.average.module, Supernet)
        return self.average.module

    def checkpoint_objects(self) -> dict[str, Any]:
        """With the average, if there is one."""
        parts = {"supernet": self.supernet, "optimizer": self.optimizer}
        return parts | ({"average": self.average} if self.average else {})

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The average, if there is one."""
        return self.weights.state_dict()


def _introduce(config: Train, space: Space, data: Data, alone: Arch | None) -> None:
    def macs(arch: Arch) -> str:
        return format_count(cost_of(space, arch, len(data.classes), data.channels)[0])

    count = "one architecture" if alone else f"{space.size():.3g} architectures"
    span = macs(alone) if alone else f"{macs(smallest(space))} to {macs(largest(space))}"
    print(f"space '{space.name}': {count}, {span} MACs")
    config.introduce(data)
    if not alone and not config.phases:
        step = config.sandwich
        print(
            f"a step: largest, {step.random} random ({step.sampling.name}), smallest; distillation by "
            f"{step.distillation.name}"
        )


def _next(path: Path, alone: Arch | None) -> int:
    print(f"next: python -m {'export.onnx' if alone else 'predictors.collect'}{run_flag(path)}")
    return 0


if __name__ == "__main__":
    main(Train)
