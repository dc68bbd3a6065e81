"""Tune selected subnets: train each on from the supernet's weights, with labels and a teacher.

A subnet of a supernet shares its weights with all others, and is better for a few epochs of its own. They
start from the supernet's weights; the loss is that of the labels plus the soft cross-entropy to a teacher
("Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531), until the subnet is as good as the
teacher.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

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
from engine.training import UNDECIDED
from ofa.space.arch import Arch, largest
from ofa.supernet import Supernet
from ofa.trained import DEFAULT_RUN, SupernetModel, Tuned, load_network
from ofa.training.teacher import Teacher, find_teacher, largest_teacher
from ofa.training.tuning import single_network, tuning_recipe
from ofa.training.tuning_loop import Tuning, TuningSettings, TuningTogether
from ofa.tuned import TUNED, check_split, export_flags, find_subnet, finished_subnets, name_of, selected_archs

SELECTED = "selected"  # the teacher that is one of the subnets, tuned before the others


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
    subnets the one with most MACs is tuned first, alone; if it is then better than the largest of the run, it
    teaches the others, and those that are tuned later. --teacher names one for all: largest; another run of
    ofa.train (its largest subnet, or the one network it trained); none; or a timm or torchvision module by
    its name, with --teacher-weights and as many outputs as the run has classes. A module gets the run's
    images, resized to the size and normalised by the mean and deviation that timm notes; torchvision's: 224
    pixels, ImageNet's.

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
    undecided: ClassVar[frozenset[str]] = UNDECIDED | {"teacher"}
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
        # Of all folders, before the images are read: what cannot be written is refused, and nothing is begun.
        for name in archs:
            self._for(name).finished_before(ranks)
        # The images are split by the seed of the run: its validation images must stay unseen.
        data = self.model_copy(update={"seed": self.split_seed}).load_images(ranks, device)
        check_images(Run(self.run), model, data)
        fitted = self.fit_batch(data, ranks)
        fitted.introduce(data)
        teacher = "largest" if self.teacher == SELECTED else self.teacher
        teaching = self._teaching(supernet, archs)
        first = {name: arch for name, arch in archs.items() if name == teaching}
        others = {name: arch for name, arch in archs.items() if name != teaching}
        for turn in filter(None, (first, others)):
            if teaching and turn is others:
                teacher = self._better_teacher(teaching, model, supernet, data, ranks)
            taught = fitted.model_copy(update={"teacher": teacher})
            status = taught._tune_together(model, supernet, turn, data, ranks, device)
            if status:
                return status
        say(f"next: python -m export.onnx{export_flags(self.run, self.out, next(iter(archs)), self.arch)}")
        return 0

    def _teaching(self, supernet: Supernet, archs: dict[str, Arch]) -> str | None:
        """The subnet with most MACs, of those to tune and those that are; None if --teacher says another."""
        if self.teacher != SELECTED or self.epochs == 0:
            return None
        known = {tuned.path.name: tuned.facts.arch for tuned in finished_subnets(self.out, self.run)} | archs
        return max(known, key=lambda name: supernet.cost(known[name])[0])

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
        return tuned if ranks.any(is_better) else "largest"

    def _tune_together(
        self,
        model: SupernetModel,
        supernet: Supernet,
        archs: dict[str, Arch],
        data: Data,
        ranks: Ranks,
        device: torch.device,
    ) -> int:
        """Tune these subnets in one pass over the data; return the exit status."""
        teacher = self._teacher(model, supernet, data)
        # Of a folder only its name: what is exported goes to others, and names no folders of this machine.
        teacher_name = "none" if teacher is None else Path(self.teacher).name
        common = {"space": model.space.name, "epochs": self.epochs, "teacher": teacher_name, "qat": self.qat}
        common["supernet_sha256"] = weights_digest(self.run)
        tunings = []
        for name, arch in archs.items():
            config = self._for(name)
            run = config.start(ranks, device)
            network = single_network(supernet, arch)
            of_network: dict[str, Any] = {"space": network.space, "arch": largest(network.space)}
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
        return TuningTogether(tunings, teacher).run() if tunings else 0

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
        return {name_of(self.arch): find_subnet(self.run, model.space, self.arch)}

    def _teacher(self, model: SupernetModel, supernet: Supernet, data: Data) -> Teacher | None:
        """Who teaches beside the labels, if anybody does."""
        # The largest subnet of a start has not learned these classes.
        untaught = model.pretrained_only and self.teacher == "largest"
        if self.epochs == 0 or self.teacher == "none" or untaught:
            return None
        if self.teacher == "largest":
            return largest_teacher(model, supernet, data)
        return find_teacher(self.teacher, self.teacher_weights, self.teacher_size, data)


if __name__ == "__main__":
    main(Tune)
