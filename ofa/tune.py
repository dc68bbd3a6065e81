"""Tune selected subnets: train each on from the supernet's weights, with labels and a teacher.

A subnet of a supernet shares its weights with all others, and is better for a few epochs of its own. They
start from the supernet's weights; the loss is that of the labels plus the soft cross-entropy to a teacher
("Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531), until the subnet is as good as the
teacher.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.start import say
from engine.compute.distributed import Ranks
from engine.compute.evaluation import accuracy
from engine.config import Located, merge
from engine.data.dataset import Data
from engine.errors import UserError
from engine.model import check_images, write_model
from engine.run import Run
from engine.runs.lock import write_lock
from ofa.space.arch import Arch, largest
from ofa.supernet import Supernet
from ofa.trained import DEFAULT_RUN, SupernetModel, Tuned, load_network
from ofa.training.teacher import Teacher, find_teacher, largest_teacher
from ofa.training.tuning import single_network, tuning_recipe
from ofa.training.tuning_loop import Tuning, TuningSettings, TuningTogether
from ofa.tuned import TUNED, check_split, export_flags, find_subnet, name_of, selected_archs

LARGEST = "largest"  # the teacher that is the run's largest subnet
SELECTED = "selected"  # the teacher that is one of the subnets to tune, tuned before the others


class Tune(TuningSettings):
    """Train selected subnets on for a few epochs, from the supernet's weights, with labels and a teacher.

    Images, batch size and learning rate are those of the run unless a flag says otherwise. Each subnet
    becomes a run folder of its own, RUN/tuned/BUDGET, whose weights export, evaluate and report prefer.
    Subnets that are tuned together share loading, augmentation and the teacher's pass. The weights that are
    best on validation images are kept; --epochs 0 keeps the supernet's and only recalibrates BatchNorm.
    --qat int8 trains for an 8-bit file: weights and activations are rounded as the file will round them, in
    the second half of the steps and in every validation.

    A teacher teaches a subnet until it is as good on validation images; then it learns from labels alone.
    The first teacher is the largest subnet of the run, calibrated (a converted network has none). Of several
    subnets the one with most MACs is tuned first, alone; if it is then at least as good as the largest of the
    run, it teaches the others. --teacher names one for all: largest; another run of ofa.train (its largest
    subnet, or the one network it trained); none; or a timm or torchvision module by its name, with
    --teacher-weights and as many outputs as the run has classes. A module gets the run's images, resized to
    the size and normalised by the mean and deviation that timm notes; torchvision's: 224 pixels, ImageNet's.

    examples:
      python -m ofa.tune                                       all subnets that predictors.select chose
      python -m ofa.tune --run runs/photos --selected 12M,30M --epochs 20
      python -m ofa.tune --selected 12M --qat int8              for export.onnx --target cpu-int8 or qnn
      python -m ofa.tune --run runs/start --arch efficientnet_lite0     a converted network, no teacher
      python -m ofa.tune --run runs/photos --teacher resnet50 --teacher-weights resnet50-photos.safetensors
      torchrun --nproc-per-node 2 -m -- ofa.tune --run runs/photos     two GPUs, half of each batch on each
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--run",
        "--selected",
        "--arch",
        "--epochs",
        "--teacher",
        "--teacher-weights",
        "--qat",
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
        description="instead: one budget, smallest, largest, a published name, a JSON file or JSON",
    )
    out: Path = Field(
        DEFAULT_RUN / TUNED,
        description="folder of the tuned subnets; by default tuned/ in the run, where others look for it",
    )
    epochs: int = Field(
        20, ge=0, description="passes over the training images; 0: only recalibrate BatchNorm"
    )
    teacher: str = Field(
        SELECTED,
        description="selected (the subnet with most MACs, tuned first, teaches the others), largest, none, a "
        "run folder, or the name of a timm or torchvision module",
    )
    teacher_weights: Located | None = Field(
        None, description="weights of a teacher that is named: .pth, .pt, .tar or .safetensors"
    )
    teacher_size: int | None = Field(
        None, ge=1, description="side of the images of a teacher that is named; none: as its library notes"
    )
    evaluate_every: int = Field(5, ge=1, description="epochs between evaluations on the validation split")
    seed: int = Field(
        0, ge=0, description="seed of order and augmentation; the validation split is the run's"
    )
    split_seed: int = Field(
        0, ge=0, description="seed of the run, which split its images; taken from the run"
    )

    @model_validator(mode="after")
    def _weights_are_of_a_module(self) -> Self:
        given = self.teacher_weights is not None or self.teacher_size is not None
        if given and self.teacher in (LARGEST, SELECTED, "none"):
            raise ValueError(
                "--teacher-weights and --teacher-size are of a timm or torchvision module; name it with "
                "--teacher, or leave them out"
            )
        return self

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
        with ExitStack() as locks:
            if ranks.first:
                for name in archs:
                    locks.enter_context(write_lock(self.out / name))
            return self._tune(model, supernet, archs, ranks, device)

    def write_lock(self) -> AbstractContextManager[None]:
        """The lock of the supernet's folder, which processes that tune share.

        Each locks the folders of its own subnets.
        """
        inside = self.out.resolve().is_relative_to(self.run.resolve())
        return write_lock(self.run, shared=True) if inside else nullcontext()

    def may_grow(self) -> frozenset[str]:
        """Nothing: the rate of a tuning ends at zero, and a longer one is another tuning."""
        return frozenset()

    def _tune(
        self,
        model: SupernetModel,
        supernet: Supernet,
        archs: dict[str, Arch],
        ranks: Ranks,
        device: torch.device,
    ) -> int:
        """Tune these subnets, whose folders are locked; return the exit status."""
        # Read now, by all ranks: the first one changes folders only when the others have come to the images.
        teachers = {name: self._known_teacher(name) for name in archs}
        first = max(archs, key=lambda name: supernet.cost(archs[name])[0])
        teachers[first] = teachers[first] or LARGEST
        # Of all folders, before the images are read: what cannot be written is refused, and nothing is begun.
        for name in archs:
            self._for(name, teachers[name]).finished_before(ranks)
        # The images are split by the seed of the run: its validation images must stay unseen.
        data = self.model_copy(update={"seed": self.split_seed}).load_images(ranks, device)
        check_images(Run(self.run), model, data)
        fitted = self.fit_batch(data, ranks)
        fitted.introduce(data)
        turns: dict[str | None, dict[str, Arch]] = {}
        for name, arch in archs.items():
            turns.setdefault(teachers[name], {})[name] = arch
        left = list(archs)
        for teacher, turn in sorted(turns.items(), key=lambda item: (item[0] is None, first not in item[1])):
            if teacher is None:
                teacher = self._better_teacher(first, model, supernet, data, ranks)
            status, stopped = fitted._tune_together(turn, teacher, model, supernet, data, ranks, device)
            left = [name for name in left if name not in turn]
            if left and stopped:
                self._say_left(left)
            if status or (left and stopped):
                return 130
        say(f"next: python -m export.onnx{export_flags(self.run, self.out, next(iter(archs)), self.arch)}")
        return 0

    def _known_teacher(self, name: str) -> str | None:
        """The teacher of a subnet; None: the subnet with most MACs, if that is the better one when tuned.

        A subnet that is resumed keeps its teacher.
        """
        if self.teacher != SELECTED:
            return self.teacher
        if self.resume and (self.out / name / "config.yaml").exists():
            return str(Run(self.out / name).config.get("teacher", LARGEST))
        return LARGEST if self.epochs == 0 else None

    def _better_teacher(
        self, name: str, model: SupernetModel, supernet: Supernet, data: Data, ranks: Ranks
    ) -> str:
        """The tuned subnet of this name, or the run's largest where that is better on validation images."""
        tuned, is_better = str(self.out / name), False
        if ranks.first:
            judged = (find_teacher(tuned, None, None, data), largest_teacher(model, supernet, data))
            own, of_largest = (accuracy(teacher, data.evaluation_batches("val")) for teacher in judged)
            is_better = own >= of_largest
            found = name if is_better else "the largest subnet"
            print(
                f"{name}: {own:.2%} on validation, the run's largest subnet {of_largest:.2%}; {found} "
                "teaches the others"
            )
        # The first rank decides for all.
        return tuned if ranks.any(is_better) else LARGEST

    def _tune_together(
        self,
        archs: dict[str, Arch],
        teacher_name: str,
        model: SupernetModel,
        supernet: Supernet,
        data: Data,
        ranks: Ranks,
        device: torch.device,
    ) -> tuple[int, bool]:
        """Tune subnets in one pass over the data.

        Returns:
            The exit status, and whether a stop was requested, be it in the last step.
        """
        teacher = self._teacher(teacher_name, model, supernet, data)
        # Of a folder only its name: what is exported goes to others, and names no folders of this machine.
        common: dict[str, Any] = {"teacher": "none" if teacher is None else Path(teacher_name).name}
        if teacher is not None and Path(teacher_name).is_dir():
            common["teacher_sha256"] = weights_digest(Path(teacher_name))
        common |= {"space": model.space.name, "epochs": self.epochs, "qat": self.qat}
        common["supernet_sha256"] = weights_digest(self.run)
        tunings = []
        for name, arch in archs.items():
            config = self._for(name, teacher_name)
            run = config.start(ranks, device)
            network = single_network(supernet, arch)
            of_network: dict[str, Any] = {"space": network.space, "arch": largest(network.space)}
            of_network |= {"pretrained_only": False, "converted": None}  # it has learned these classes
            described = model.model_copy(update=of_network | {"tuned": Tuned(arch=arch, **common)})
            # Before the next question: a finished subnet of other weights is refused, not left as it is.
            if ranks.first:
                write_model(run.path / "model.json", described, "subnet, the supernet, its teacher")
            # The first rank decides for all, so that none goes on alone.
            if ranks.any(ranks.first and run.finished):
                print(f"{run.path} is finished already.")
                continue
            tunings.append(Tuning(config, run, network, data, ranks, model.calibration_images))
        if not tunings:
            return 0, False
        together = TuningTogether(tunings, teacher)
        return together.run(), together.stopped

    def _say_left(self, names: list[str]) -> None:
        """Say what becomes of the subnets that were to be tuned later, when the command stops before them."""
        print(f"not begun: {', '.join(names)}; the same command with --resume continues")
        old = [name for name in names if self.overwrite and Run(self.out / name).finished]
        if old:
            print(f"{', '.join(old)} as tuned before; --selected {','.join(old)} --overwrite tunes them anew")

    def _for(self, name: str, teacher: str | None) -> "Tune":
        """These settings for one folder, which replays its own subnet without those tuned beside it."""
        own = {"out": self.out / name} | ({} if self.arch else {"selected": name})
        return self.model_copy(update=own | ({"teacher": teacher} if teacher else {}))

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
        return {name_of(self.arch): find_subnet(self.run, model.space, self.arch)}

    def _teacher(self, name: str, model: SupernetModel, supernet: Supernet, data: Data) -> Teacher | None:
        """The teacher that a name stands for, who teaches beside the labels; None: nobody does."""
        # The largest subnet of a start has not learned these classes.
        untaught = model.pretrained_only and name == LARGEST
        if self.epochs == 0 or name == "none" or untaught:
            return None
        if name == LARGEST:
            return largest_teacher(model, supernet, data)
        return find_teacher(name, self.teacher_weights, self.teacher_size, data)


if __name__ == "__main__":
    main(Tune)
