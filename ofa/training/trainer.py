"""The loop that trains a supernet: its weights, their average, the optimiser and the phases."""

import time
from typing import Any

from torch import Tensor

from engine.blocks.elastic import add_gradients_in_place, join_batch_norms
from engine.checkpoint import save_weights
from engine.compute.distributed import ALONE, Ranks
from engine.compute.gradients import GradientAverage
from engine.config import counted, format_count
from engine.data.augment import resize
from engine.data.dataset import Data
from engine.optim import RunningAverage, build_sgd, clip_gradients, learning_rate, set_learning_rate
from engine.run import Run
from engine.seed import numpy_generator
from engine.statistics import format_accuracy
from engine.training import Training
from ofa.calibration import prepare, subnet_accuracy
from ofa.cost import cost_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import sample
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.training.conflicts import GradientParts
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
from ofa.training.recipe import Recipe
from ofa.training.sampling import Sampler
from ofa.training.sandwich import Seeds, label_step, sandwich_step


class Trainer(Training):
    """The state of a training run: weights, their average, the optimiser and the number of steps done."""

    def __init__(
        self,
        config: Recipe,
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
        self.gradients = GradientAverage(supernet.parameters(), ranks)
        self.teacher = read_teacher(run.path, supernet)
        # A single process keeps the layers that save memory: there is nothing to join.
        if config.sync_bn and ranks.size > 1:
            join_batch_norms(supernet)
        # With several processes gradients are sent by hooks of the parameters.
        if ranks.size == 1:
            add_gradients_in_place(supernet)
        self.rolls_back = config.on_divergence == "rollback"
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
        print(f"phase {number + 1} of {len(phases)}: {phase.name}, {counted(phase.epochs, 'epoch')}")
        # Saved to a file: a resumed run has no other way to know the network of the first phase's end.
        if phase.subnets and self.teacher is None:
            self.teacher = extract(self.supernet, largest(self.supernet.space))
            if self.ranks.first:
                save_weights(self.folder.path / TEACHER, self.teacher.state_dict())
        if number and grows(phases[number - 1], phase, self.supernet.space):
            sort_channels(self.supernet, phases[number - 1])
        # New ones, as in the reference code; besides, momentum and average are of channels in the old order.
        self.optimizer, self.average = build_sgd(self.config.sgd, self.supernet), self._new_average()

    def _new_average(self) -> RunningAverage | None:
        return None if self.config.ema is None else RunningAverage(self.supernet, self.config.ema)

    def update(self, x: Tensor, y: Tensor) -> None:
        """One optimiser step on one batch."""
        self._set_learning_rate()
        self.optimizer.zero_grad()
        losses = self._add_gradients(x, y)
        losses = self.gradients.finish(losses)
        clip_gradients(self.config.sgd, self.supernet)
        self.optimizer.step()
        if self.average:
            self.average.update()
        self.done(losses)

    def _set_learning_rate(self) -> None:
        """The rate of this step; every phase has a warm-up and a decay of its own."""
        sgd, start, end = self.config.sgd, 0, self.total
        phase = self.phase_at(self.step)
        if phase is not None:
            _, start, end = phase_position(self.config.phases, self.steps, self.step)
            of_phase = {"lr", "warmup_epochs", "warmup_start"}
            sgd = sgd.model_copy(update={name: getattr(phase, name) for name in of_phase})
        warmup = round(sgd.warmup_epochs * self.steps)
        rate = learning_rate(sgd, self.step - start, end - start, warmup)
        set_learning_rate(self.optimizer, rate * self.rate_scale)

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
            return shrinking_step(
                supernet, self.teacher, x, y, step, phase, config.sandwich, seeds, self.gradients
            )
        only = self.single_arch
        if step < self.config.sandwich.largest_first * self.total:
            only = only or largest(supernet.space)
        if only is not None:
            backward = self.gradients.last_backward
            _, loss = label_step(supernet, only, x, y, config.sandwich, (own, step), backward=backward)
            return loss[None]
        every = config.log_conflicts
        parts = GradientParts(supernet) if every and step % every == 0 else None
        passes = parts or self.gradients
        losses = sandwich_step(supernet, x, y, step, config.sandwich, self.sampler, seeds, passes)
        # Each rank has gradients of its own images; the first one's are enough to see whether they conflict.
        if parts is not None and self.ranks.first:
            self.folder.log(step=step + 1, epoch=self.epoch, **parts.cosines())
        return losses

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss of the largest comes first, then those of the others, the smallest last if it is there."""
        last = "smallest" if self.config.sandwich.smallest else "random"
        note = f"loss {losses[0]:.3f}" + (f"  {last} {losses[-1]:.3f}" if losses[1:] else "")
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
            scores[i] = subnet_accuracy(subnet, data.evaluation_batches("val"))
        scores = self.ranks.total(scores)
        self.score = sum(scores) / len(scores)
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
        network = self.average.network
        assert isinstance(network, Supernet)
        return network

    def checkpoint_objects(self) -> dict[str, Any]:
        """The supernet, the optimiser and, if there is one, the average."""
        parts = {"supernet": self.supernet, "optimizer": self.optimizer}
        return parts | ({"average": self.average} if self.average else {})

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The weights that are handed on: the average if there is one."""
        return self.weights.state_dict()
