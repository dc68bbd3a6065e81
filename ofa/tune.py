"""Tune selected subnets: train each on from the supernet's weights, with labels and a teacher.

A subnet of a supernet shares its weights with all others, and is better for a few epochs of its own. They
start from the supernet's weights; the loss is that of the labels plus the soft cross-entropy to a teacher,
by default the largest subnet, calibrated ("Distilling the Knowledge in a Neural Network", 2015,
arXiv:1503.02531).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from engine.command.cli import main
from engine.command.start import say
from engine.compute.distributed import Ranks
from engine.config import Located, format_count, merge
from engine.data.dataset import Data
from engine.errors import UserError
from engine.loop import EpochLoop
from engine.model import check_images, write_model
from engine.optim import SGD, build_sgd, clip_gradients, set_learning_rate
from engine.plot.confusion import write_confusion
from engine.run import Run
from engine.statistics import describe_confusion, overall_accuracy
from engine.training import Training, TrainingCommand
from ofa.calibration import EVALUATION_BATCH, prepare, subnet_confusion
from ofa.space.arch import Arch, largest
from ofa.space.published import find_arch
from ofa.supernet import Supernet
from ofa.trained import DEFAULT_RUN, SupernetModel, Tuned, load_network
from ofa.training.teacher import Teacher, find_teacher, largest_teacher
from ofa.training.tuning import (
    TEACHER_WEIGHT,
    TUNING_SGD,
    single_network,
    tune_step,
    tuning_rate,
    tuning_recipe,
)
from ofa.tuned import TUNED, check_split, export_flags, name_of, selected_archs, supernet_digest

# Data draws an epoch's order and augmentation from its own seed and the number of the epoch. Its seed is that
# of the validation split, which must stay; so every seed of tuning has epochs of its own, this far apart.
EPOCHS_APART = 1_000_000


class Tune(TrainingCommand):
    """Train selected subnets on for a few epochs, from the supernet's weights, with labels and a teacher.

    Images, batch size and learning rate are those of the run unless a flag says otherwise. Each subnet
    becomes a run folder of its own, RUN/tuned/BUDGET, whose weights export, evaluate and report prefer.
    Subnets that are tuned together share loading, augmentation and the teacher's pass. The weights that are
    best on validation images are kept; --epochs 0 keeps the supernet's and only recalibrates BatchNorm.

    The teacher is the largest subnet of the run, calibrated (a converted network has none); or --teacher:
    another run of ofa.train (its largest subnet, or the one network it trained), none, or a timm or
    torchvision module by its name, with --teacher-weights and as many outputs as the run has classes. A
    module gets the run's images, resized to the size and normalised by the mean and deviation that timm
    notes; torchvision's: 224 pixels, ImageNet's.

    examples:
      python -m ofa.tune                                       all subnets that predictors.select chose
      python -m ofa.tune --run runs/photos --selected 12M,30M --epochs 20
      python -m ofa.tune --run runs/start --arch efficientnet_lite0     a converted network, no teacher
      python -m ofa.tune --run runs/photos --teacher resnet50 --teacher-weights resnet50-photos.safetensors
      torchrun --nproc-per-node 2 -m ofa.tune --run runs/photos     two GPUs, half of each batch on each
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--run",
        "--selected",
        "--arch",
        "--epochs",
        "--teacher",
        "--teacher-weights",
        "--sgd.lr",
        "--seed",
        "--device",
        "--resume",
    )

    module: ClassVar[str] = "ofa.tune"
    run: Path = Field(DEFAULT_RUN, description="folder of a finished run of ofa.train")
    selected: str = Field(
        "all", description="budgets, as named in the run's selected/ folder, separated by commas; or all"
    )
    arch: str | None = Field(
        None,
        description="instead: smallest, largest, a published name, a JSON file or JSON of an architecture",
    )
    out: Path = Field(
        DEFAULT_RUN / TUNED,
        description="folder of the tuned subnets; by default tuned/ in the run, where others look for it",
    )
    epochs: int = Field(
        20, ge=0, description="passes over the training images; 0: only recalibrate BatchNorm"
    )
    sgd: SGD = Field(
        TUNING_SGD,
        description="the optimiser; its rate and decay are by default those of the run, with a cosine to 0",
    )
    teacher: str = Field(
        "largest", description="largest, none, a run folder, or the name of a timm or torchvision module"
    )
    teacher_weights: Located | None = Field(
        None, description="weights of a teacher that is named: .pth, .pt, .tar or .safetensors"
    )
    teacher_size: int | None = Field(
        None, ge=1, description="side of the images of a teacher that is named; none: as its library notes"
    )
    teacher_weight: float = Field(
        TEACHER_WEIGHT, ge=0, description="weight of the teacher's loss, beside 1 for that of the labels"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the labels spread over all classes")
    evaluate_every: int = Field(5, ge=1, description="epochs between evaluations on the validation split")
    seed: int = Field(
        0, ge=0, description="seed of order and augmentation; the validation split is the run's"
    )
    split_seed: int = Field(
        0, ge=0, description="seed of the run, which split its images; taken from the run"
    )

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Lay the values over those of the run that is tuned."""
        run = Run.open(Path(values.get("run", DEFAULT_RUN)))
        config = run.config
        base = tuning_recipe(config) | {"out": run.path / TUNED}
        # Last, so that no flag can bring held-out images into the tuning.
        return merge(base, values) | {"split_seed": config["seed"]}

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Tune as rank `ranks.rank` on `device`; return the exit status."""
        model, supernet = self._open_supernet()
        check_split(self.run, self.data)
        archs = self._archs(model)
        # Of all folders, before the images are read: what cannot be written is refused, and nothing is begun.
        for name in archs:
            self._for(name).finished_before(ranks)
        # The images are split by the seed of the run: its validation images must stay unseen.
        data = self.model_copy(update={"seed": self.split_seed}).load_images(ranks, device)
        check_images(Run(self.run), model, data)
        fitted = self.fit_batch(data, ranks)
        teacher = self._teacher(model, supernet, data)
        # Of a folder only its name: what is exported goes to others, and names no folders of this machine.
        teacher_name = "none" if teacher is None else Path(self.teacher).name
        common = {"space": model.space.name, "epochs": self.epochs, "teacher": teacher_name}
        common["supernet_sha256"] = supernet_digest(self.run)
        tunings = []
        for name, arch in archs.items():
            config = fitted._for(name)
            run = config.start(ranks)
            network = single_network(supernet, arch)
            of_network = {"space": network.space, "arch": largest(network.space)}
            of_network |= {"pretrained_only": False, "converted": None}  # it has learned these classes
            described = model.model_copy(update=of_network | {"tuned": Tuned(arch=arch, **common)})
            # Before the next question: a finished subnet of other weights is refused, not left as it is.
            if ranks.first:
                write_model(run.path / "model.json", described, "subnet, the supernet")
            # The first rank decides for all, so that none goes on alone.
            if ranks.any(ranks.first and run.finished):
                print(f"{run.path} is finished already.")
                continue
            tunings.append(Tuning(config, run, network, data, ranks, model.calibration_images))
        if tunings:
            fitted.introduce(data)
            status = TuningTogether(tunings, teacher).run()
            if status:
                return status
        say(f"next: python -m export.onnx{export_flags(self.run, self.out, next(iter(archs)), self.arch)}")
        return 0

    def _for(self, name: str) -> "Tune":
        """These settings for one folder, which replays its own subnet without those tuned beside it."""
        own = {"out": self.out / name} | ({} if self.arch else {"selected": name})
        return self.model_copy(update=own)

    def _open_supernet(self) -> tuple[SupernetModel, Supernet]:
        """The supernet of the run, on CPU.

        Raises:
            UserError: the run is one architecture, or a converted network and there is no --arch.
        """
        model, supernet = load_network(self.run)
        if model.arch is not None:
            raise UserError(
                f"Run '{self.run}' is one architecture, not a supernet whose subnets could be tuned; name a "
                "supernet with --run."
            )
        # Most subnets of a start have learned nothing: the one to tune, the converted network, must be named.
        if model.pretrained_only and self.arch is None:
            raise UserError(
                f"Run '{self.run}' is a start for training; name the network to tune with --arch, or train a "
                f"supernet: python -m ofa.train --config ofa/finetune --init {self.run}."
            )
        return model, supernet

    def _archs(self, model: SupernetModel) -> dict[str, Arch]:
        """The subnets to tune, by the names of their folders."""
        if self.arch is None:
            return selected_archs(self.run, model.space, self.selected)
        return {name_of(self.arch): find_arch(model.space, self.arch)}

    def _teacher(self, model: SupernetModel, supernet: Supernet, data: Data) -> Teacher | None:
        """Who teaches beside the labels, if anybody does."""
        # The largest subnet of a start has not learned these classes.
        untaught = model.pretrained_only and self.teacher == "largest"
        if self.epochs == 0 or self.teacher == "none" or untaught:
            return None
        if self.teacher == "largest":
            return largest_teacher(model, supernet, data)
        return find_teacher(self.teacher, self.teacher_weights, self.teacher_size, data)


class Tuning(Training):
    """One subnet that is tuned: its weights, its optimiser, its best checkpoint and its run folder."""

    def __init__(
        self,
        config: Tune,
        run: Run,
        network: Supernet,
        data: Data,
        ranks: Ranks,
        calibration_images: int,
    ):
        super().__init__(config, run, network, data, ranks, config.epochs)
        self.config, self.name, self.single = config, run.path.name, network
        self.calibration_images = calibration_images
        self.optimizer = build_sgd(config.sgd, network)
        self.untuned = 0.0  # accuracy of the subnet as the supernet gave it
        self.best: dict[str, Any] = {"accuracy": -1.0, "epochs": 0, "weights": {}}
        self.restore()  # last, since it fills what is made above

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
        losses = tune_step(self.single, x, y, teacher_NK, config.teacher_weight, config.label_smoothing)
        losses = self.ranks.average_gradients(self.single.parameters(), losses)
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
        found = subnet_confusion(subnet, self.data.batches("val", EVALUATION_BATCH), len(classes))
        score = overall_accuracy(found)
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
                f"{self.best['epochs']} of {self.epochs} epochs {describe_confusion(of_best, classes)}"
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
        return super().state() | {"best": self.best, "untuned": self.untuned}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        super().load(state)
        self.best, self.untuned = state["best"], float(state["untuned"])

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
        self.step, self.epoch, self.batches_done = last.step, last.epoch, last.batches_done
        self.data, self.config = last.data, last.config
        self.stop_at = last.stop_at

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
        for tuning in self.tunings:
            if not tuning.best["weights"]:
                tuning.evaluate(-1, self.epochs == 0)
                tuning.save()
        return super().run()

    def update(self, x: Tensor, y: Tensor) -> None:
        """One step of every subnet on one batch."""
        taught = self.teacher(x) if self.teacher else None
        for tuning in self.tunings:
            if tuning.step == self.step:
                tuning.learn(x, y, taught)
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
        super().end_epoch()

    def save(self) -> None:
        """A checkpoint of each subnet in its own folder."""
        for tuning in self.tunings:
            tuning.save()

    def finish(self) -> None:
        """Write DONE in the folder of each subnet."""
        for tuning in self.tunings:
            tuning.finish()


def _steps_done(tuning: Tuning) -> int:
    return tuning.step


if __name__ == "__main__":
    main(Tune)
