"""The loop that tunes one subnet or several in one pass over the data; `ofa.tune` is the command."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.blocks.elastic import join_batch_norms
from engine.compute.distributed import Ranks
from engine.compute.evaluation import accuracy
from engine.compute.gradients import GradientAverage
from engine.config import counted, format_count
from engine.data.dataset import Data
from engine.loop import EpochLoop
from engine.optim import SGD, build_sgd, clip_gradients, set_learning_rate
from engine.plot.confusion import write_confusion
from engine.run import Run
from engine.statistics import describe_confusion, overall_accuracy
from engine.training import Training, TrainingCommand
from ofa.calibration import prepare, subnet_confusion
from ofa.quantization import RoundedNetwork, int8_confusion
from ofa.space.arch import largest
from ofa.supernet import Supernet
from ofa.training.teacher import Teacher
from ofa.training.tuning import TEACHER_WEIGHT, TUNING_SGD, tune_step, tuning_rate

# Data draws an epoch's order and augmentation from its own seed and the number of the epoch. Its seed is that
# of the validation split, which must stay; so every seed of tuning has epochs of its own, this far apart.
EPOCHS_APART = 1_000_000


class TuningSettings(TrainingCommand):
    """What decides how a subnet learns while it is tuned."""

    sgd: SGD = Field(
        TUNING_SGD,
        description="the optimiser; its rate and decay are by default those of the run, with a cosine to 0",
    )
    teacher_weight: float = Field(
        TEACHER_WEIGHT, ge=0, description="weight of the teacher's loss, beside 1 for that of the labels"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the labels spread over all classes")
    sync_bn: bool = Field(False, description="BatchNorm statistics are of all processes' images")
    qat: Literal["int8"] | None = Field(
        None,
        description=(
            "int8: round weights and activations to 8 bits in the second half of the steps, for an 8-bit "
            "file that loses less, and keep the weights that are best in 8 bits"
        ),
    )


class Tuning(Training):
    """One subnet that is tuned: its weights, its optimiser, its best checkpoint and its run folder."""

    def __init__(
        self,
        config: TuningSettings,
        run: Run,
        network: Supernet,
        data: Data,
        ranks: Ranks,
        calibration_images: int,
    ):
        super().__init__(config, run, network, data, ranks, config.epochs)
        self.config, self.name, self.single = config, run.path.name, network
        self.calibration_images = calibration_images
        self.rounded = RoundedNetwork(network) if config.qat else None
        self.optimizer = build_sgd(config.sgd, network)
        self.gradients = GradientAverage(network.parameters(), ranks)
        # A single process keeps the layers that save memory: there is nothing to join.
        if config.sync_bn and ranks.size > 1:
            join_batch_norms(network)
        self.untuned = 0.0  # accuracy of the subnet as the supernet gave it
        self.outgrown = False  # whether its teacher has stopped, since it is as good
        self.best: dict[str, Any] = {"accuracy": -1.0, "epochs": 0, "weights": {}}
        self.restore()  # last, since it fills what is made above

    @property
    def learner(self) -> Supernet | RoundedNetwork:
        """What learns in the next step: the network; for 8 bits, after half of the steps, one that rounds."""
        # At the high rates of the first half weights move by more than a level, and rounding is only noise.
        if self.rounded is None or 2 * self.step < self.total:
            return self.single
        return self.rounded

    def learn(self, x: Tensor, y: Tensor, teacher_NK: Tensor | None) -> None:
        """One optimiser step on one batch.

        Args:
            x: this rank's images (N, C, side, side).
            y: classes (N,) or class probabilities (N, K).
            teacher_NK: logits of the teacher; None: labels alone.
        """
        config, sgd = self.config, self.config.sgd
        set_learning_rate(self.optimizer, tuning_rate(sgd, self.step, self.steps, self.total))
        self.optimizer.zero_grad()
        backward, weight = self.gradients.last_backward, config.teacher_weight
        losses = tune_step(self.learner, x, y, teacher_NK, weight, config.label_smoothing, backward)
        losses = self.gradients.finish(losses)
        clip_gradients(sgd, self.single)
        self.optimizer.step()
        self.done(losses)

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss of the labels, then that of the teacher."""
        point = dict(zip(("loss", "distillation"), losses, strict=False))
        return point, f"{self.name} {losses[0]:.3f}"

    def evaluate(self, epoch: int, last: bool) -> None:
        """Validation accuracy of the calibrated network; the best weights so far are kept.

        Args:
            epoch: the epoch that ended, from 0; -1 before the first.
            last: whether it was the last one; then the result is also printed.
        """
        if not self.ranks.first:
            return
        arch = largest(self.single.space)
        subnet = prepare(self.single, arch, self.data, self.calibration_images)
        classes = self.data.classes
        batches = self.data.evaluation_batches("val")
        # What is trained for 8 bits is judged in 8 bits: its best weights need not be the best in float32.
        if self.config.qat:
            found = int8_confusion(subnet, self.data, batches, len(classes))
        else:
            found = subnet_confusion(subnet, batches, len(classes))
        score = self.score = overall_accuracy(found)
        self.folder.log(step=self.step, epoch=epoch, arch=self.name, val_accuracy=score)
        # Equal ones: the later weights have learned more, and accuracy is coarse on few images.
        if score >= self.best["accuracy"]:
            # What the subnet's layers hold, its own BatchNorm statistics among it, under the network's names.
            own = self.single.slices(arch)
            with torch.no_grad():
                for name, tensor in subnet.state_dict().items():
                    if name in own:
                        own[name].copy_(tensor)
            weights = {name: tensor.cpu().clone() for name, tensor in self.single.state_dict().items()}
            confusion = torch.from_numpy(found)
            self.best = {"accuracy": score, "epochs": epoch + 1, "weights": weights, "confusion": confusion}
        if epoch < 0:
            self.untuned = score
        if last:
            macs, _ = self.single.cost(arch)
            of_best = self.best["confusion"].numpy()
            print(
                f"  {self.name:9} {format_count(macs):>6} MACs  {self.untuned:.2%} before, best after "
                f"{self.best['epochs']} of {counted(self.epochs, 'epoch')} "
                f"{describe_confusion(of_best, classes)}"
            )
            write_confusion(
                self.folder.path / "confusion" / "val", f"{self.name}, validation", of_best, classes
            )

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The best weights so far."""
        weights: dict[str, Tensor] = self.best["weights"]
        return weights

    def state(self) -> dict[str, Any]:
        """Network and optimiser, and the best weights so far."""
        own = {"best": self.best, "untuned": self.untuned, "outgrown": self.outgrown}
        return super().state() | own

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        super().load(state)
        self.best, self.untuned, self.outgrown = state["best"], state["untuned"], state["outgrown"]

    def divergence_hint(self, step: int) -> str:
        """A lower rate."""
        return f"a lower --sgd.lr (now {self.config.sgd.lr})"


class TuningTogether(EpochLoop):
    """Several subnets that are tuned in one pass over the data, and with one pass of their teacher.

    Nothing goes from one to another, so it does not matter which subnets are together: each ends with the
    same weights as alone. A process that is killed while it writes checkpoints leaves some a few steps ahead;
    those wait for the others.

    Args:
        tunings: one or more.
        teacher: their teacher; None: labels alone.
    """

    verb: ClassVar[str] = "tune"

    def __init__(self, tunings: list[Tuning], teacher: Teacher | None):
        last = min(tunings, key=_steps_done)
        super().__init__(last.folder, last.epochs, last.ranks)
        self.tunings, self.teacher = tunings, teacher
        self.teacher_accuracy = 0.0  # of validation images; only the first rank, which compares, knows it
        self.step, self.epoch, self.batches_done = last.step, last.epoch, last.batches_done
        self.data, self.config = last.data, last.config
        self.saving = last.saving

    def steps_in(self, epoch: int) -> int:
        """Every epoch has the same number of batches."""
        return self.tunings[0].steps

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the images and labels that remain of the epoch."""
        epoch = self.epoch + EPOCHS_APART * self.config.seed
        return self.data.train_batches(
            self.config.batch_size, epoch, skip=self.batches_done, ranks=self.ranks
        )

    def run(self) -> int:
        """Measure each subnet as it is, then train: untuned weights are kept if nothing is better."""
        if self.teacher and self.ranks.first and not all(tuning.outgrown for tuning in self.tunings):
            self.teacher_accuracy = accuracy(self.teacher, self.data.evaluation_batches("val"))
            print(f"teacher: {self.teacher_accuracy:.2%} on validation; it teaches each subnet up to there")
        for tuning in self.tunings:
            if not tuning.best["weights"]:
                tuning.evaluate(-1, self.epochs == 0)
                self._compare(tuning)
                tuning.save()
        return super().run()

    def update(self, x: Tensor, y: Tensor) -> None:
        """One step of every subnet on one batch."""
        there = [tuning for tuning in self.tunings if tuning.step == self.step]
        taught = None
        if self.teacher and not all(tuning.outgrown for tuning in there):
            taught = self.teacher(x)
        for tuning in there:
            tuning.learn(x, y, None if tuning.outgrown else taught)
        self.batches_done, self.step = self.batches_done + 1, self.step + 1

    def log(self) -> str:
        """Each subnet logs its own losses."""
        return "  ".join([tuning.log() for tuning in self.tunings])

    def check_finite(self) -> None:
        """Refuse weights of any subnet that are not finite."""
        for tuning in self.tunings:
            tuning.check_finite()

    def end_epoch(self) -> None:
        """Each subnet that is at this epoch evaluates, if its time has come."""
        for tuning in self.tunings:
            if tuning.epoch == self.epoch:
                tuning.end_epoch()
                self._compare(tuning)
        super().end_epoch()

    def _compare(self, tuning: Tuning) -> None:
        """Note whether a subnet is as good as the teacher; the first rank knows it and tells the others."""
        if self.teacher is None or tuning.outgrown:
            return
        # There is no score after an epoch without an evaluation.
        is_as_good = tuning.score is not None and tuning.score >= self.teacher_accuracy
        tuning.outgrown = self.ranks.any(self.ranks.first and is_as_good)
        if tuning.outgrown:
            print(f"{tuning.name} is as good as its teacher, and learns from labels alone")
            # Its steps cost less from now on.
            self.rate_known, self.measured_from = False, None

    def save(self) -> None:
        """A checkpoint of each subnet in its own folder."""
        for tuning in self.tunings:
            tuning.save()

    def keep_checkpoint(self, resumed: bool = False) -> None:
        """Each subnet keeps its own."""
        for tuning in self.tunings:
            tuning.keep_checkpoint(resumed)

    def finish(self) -> None:
        """Write DONE in the folder of each subnet."""
        for tuning in self.tunings:
            tuning.finish()


def _steps_done(tuning: Tuning) -> int:
    return tuning.step
