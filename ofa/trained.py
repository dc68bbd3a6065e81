"""What a finished supernet run gives to later stages: space, weights, data and measured subnets."""

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.checkpoint import load_weights
from engine.command.cli import Command
from engine.compute.device import pick_device, use_threads
from engine.compute.distributed import ALONE, Ranks, join
from engine.config import Config, validate
from engine.data.dataset import Data, Split
from engine.errors import UserError
from engine.model import ImageModel, WeightsOrigin, image_facts, open_images
from engine.run import Run, read_json
from engine.runs.lock import write_lock
from engine.statistics import Counts
from ofa.calibration import prepare, subnet_accuracy, subnet_confusion
from ofa.quantization import int8_accuracy
from ofa.space.arch import Arch, largest
from ofa.space.codes import Codes
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet

DEFAULT_RUN = Path("runs/supernet")
EvaluationPrecision = Literal["float32", "int8"]  # in which subnets of a run are measured


def run_flag(path: Path) -> str:
    """The flag by which a later command finds this run, after a space; empty for the default folder."""
    return "" if path == DEFAULT_RUN else f" --run {shlex.quote(str(path))}"


def precision_flag(precision: EvaluationPrecision) -> str:
    """The flag of a later command for subnets that are measured so, after a space; empty for float32."""
    return "" if precision == "float32" else f" --precision {precision}"


class Tuned(Config):
    """What a tuned subnet was, and whose weights it started from."""

    arch: Arch = Field(description="the subnet, as an architecture of the supernet's space")
    space: str = Field(description="name of the supernet's space")
    supernet_sha256: str = Field(description="of the supernet's weights.safetensors, in hexadecimal")
    epochs: int = Field(description="passes over the training images; 0: only BatchNorm was recalibrated")
    teacher: str = Field(description="who taught beside the labels")
    teacher_sha256: str | None = Field(
        None, description="of the teacher's weights.safetensors, if another run or tuned subnet taught"
    )
    qat: Literal["int8"] | None = Field(None, description="what it was rounded to while it was trained")


class SupernetModel(ImageModel):
    """model.json: what weights.safetensors belongs to."""

    kind: Literal["supernet"] = "supernet"
    space: Space
    arch: Arch | None = Field(None, description="the network, if the run trained a single architecture")
    calibration_images: int
    tuned: Tuned | None = Field(None, description="where the network comes from, if ofa.tune made the run")
    pretrained_only: bool = Field(
        False,
        description=(
            "converted from a checkpoint and only good to start a training from, since its classifier or its "
            "subnets never learned"
        ),
    )
    converted: Arch | None = Field(
        None, description="the only architecture that has learned, if the run was converted from one network"
    )

    def is_converted(self, arch: Arch) -> bool:
        """Whether `arch` is the network that the run was converted from, at whatever resolution."""
        same = self.converted and self.converted.model_copy(update={"resolution": arch.resolution})
        return arch == same


def model_of(
    space: Space,
    arch: Arch | None,
    data: Data,
    calibration_images: int,
    weights: WeightsOrigin | None = None,
    pretrained_only: bool = False,
) -> SupernetModel:
    """What model.json says of a network of `space` for these images.

    Args:
        space: the space that the run trains.
        arch: the network if the run trains a single architecture, else None.
        data: the images.
        calibration_images: training images for BatchNorm statistics of a subnet.
        weights: where the first weights come from; None: they were drawn.
        pretrained_only: whether the weights can only start a training.
    """
    return SupernetModel(
        space=space,
        arch=arch,
        calibration_images=calibration_images,
        weights=weights,
        pretrained_only=pretrained_only,
        **image_facts(data),
    )


def load_network(path: Path) -> tuple[SupernetModel, Supernet]:
    """Read model.json of a run, and its supernet with the weights, on CPU.

    Raises:
        UserError: either is missing or damaged, or they do not fit each other.
    """
    model = validate(SupernetModel, read_json(path / "model.json"), str(path / "model.json"))
    # Its first weights are random and drawn in vain: all of them are replaced below.
    supernet = Supernet(model.space, len(model.classes), model.channels)
    weights = path / "weights.safetensors"
    # torch lists every tensor that does not fit; a person needs to know which files, and what to do.
    try:
        supernet.load_state_dict(load_weights(weights))
    except RuntimeError:
        raise UserError(
            f"Weights '{weights}' do not fit the space in model.json beside them; copy the run folder again."
        ) from None
    return model, supernet


def open_source(run: Path, space: str | None) -> tuple[SupernetModel, Supernet]:
    """model.json and the supernet of a finished run, to start another training from.

    Args:
        run: folder of that run.
        space: the name or file of the space that the new training asks for; None: that of the run.

    Returns:
        A supernet of the space that is asked for, with the weights of the run.

    Raises:
        UserError: there is no supernet, or its weights are not those of that space.
    """
    Run.open(run, "--init")
    model, supernet = load_network(run)
    # A network that was trained alone has weights for one architecture only.
    if model.arch is not None:
        raise UserError(
            f"Run '{run}' is one architecture trained alone, not a supernet to start from; give another "
            "--init."
        )
    if space is None:
        return model, supernet
    chosen = _as_converted(load_space(space), model.space)
    # It may choose otherwise, as long as the largest choices, which decide the weights, are the same.
    with torch.device("meta"):
        asked = Supernet(chosen, supernet.classes, supernet.channels)
    given, wanted = _shapes(supernet), _shapes(asked)
    if given != wanted:
        different = [name for name in given | wanted if given.get(name) != wanted.get(name)]
        raise UserError(
            f"Run '{run}' is of space '{model.space.name}', whose weights are not those of '{space}' "
            f"({different[0]} is the first that differs); give one with the same largest choices, or none."
        )
    asked.load_state_dict(supernet.state_dict(), assign=True)
    return model, asked


def _shapes(supernet: Supernet) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in supernet.state_dict().items()}


def _as_converted(space: Space, other: Space) -> Space:
    """`space` with what `ofa.convert` changes in a space for the sake of its weights, as `other` has it."""
    head = space.head and other.head and space.head.model_copy(update={"bias": other.head.bias})
    converted = {"head": head or space.head, "bn_eps": other.bn_eps, "padding": other.padding}
    return space.model_copy(update=converted)


@torch.no_grad()
def start_from(supernet: Supernet, source: Supernet, arch: Arch | None) -> None:
    """Copy the weights of `source` into `supernet`.

    The classifier stays fresh where the numbers of classes differ.

    Args:
        supernet: of the same space; or, with `arch`, of the space of that single architecture.
        source: where the weights come from.
        arch: the architecture whose weights are copied; None: all weights.

    Raises:
        UserError: the images have other channels.
    """
    if source.channels != supernet.channels:
        raise UserError(
            f"The run of --init is of images with {source.channels} channels, but these have "
            f"{supernet.channels}."
        )
    if arch is None:
        theirs, ours = source.state_dict(), supernet.state_dict()
    else:
        # In the space of a single architecture the largest network is that architecture, and its slices are
        # views: what is copied into them is copied into the supernet's weights.
        theirs, ours = source.slices(arch), supernet.slices(largest(supernet.space))
    for name, tensor in theirs.items():
        # Both are of one space, so only the classifier can differ in shape.
        if tensor.shape == ours[name].shape or not name.startswith("classifier."):
            ours[name].copy_(tensor)


class TrainedSupernet:
    """A trained supernet with its data.

    Args:
        path: folder of a finished run.
        device: where to compute.
        images: where the data of the run is now, if it moved.

    Raises:
        UserError: the run or its data is missing, unfinished or damaged.
    """

    def __init__(self, path: Path, device: torch.device, images: Path | None = None):
        self.run, self.device = Run.open(path), device
        self.model, supernet = load_network(path)
        self.space, self.supernet = self.model.space, supernet.to(device)
        # With the seed of the run: the same validation images must stay unseen by training.
        self.data: Data = open_images(self.run, self.model, device, images)
        self.seed = self.data.seed

    def subnet(self, arch: Arch) -> Subnet:
        """Extract `arch` and calibrate its BatchNorm on training images, always the same ones; eval mode.

        A converted network keeps the statistics that it came with, and so computes what it always did.
        """
        if self.model.is_converted(arch):
            return extract(self.supernet, arch).eval()
        return prepare(self.supernet, arch, self.data, self.model.calibration_images)

    def accuracy(self, arch: Arch, split: Split, precision: EvaluationPrecision = "float32") -> float:
        """Top-1 accuracy in [0, 1] of the calibrated subnet on a split.

        Args:
            arch: the subnet.
            split: which images.
            precision: int8: every tensor is rounded as an 8-bit file rounds it.
        """
        subnet, batches = self.subnet(arch), self.data.evaluation_batches(split)
        if precision == "int8":
            return int8_accuracy(subnet, self.data, batches)
        return subnet_accuracy(subnet, batches)

    def confusion(self, subnet: Subnet, split: Split) -> Counts:
        """How many images of each class (row) a subnet of this run took for each class (column).

        Args:
            subnet: calibrated, in eval mode.
            split: which images.
        """
        batches = self.data.evaluation_batches(split)
        return subnet_confusion(subnet, batches, len(self.model.classes))

    def cost(self, arch: Arch) -> tuple[int, int]:
        """(MACs, parameters) for this run's classes and channels."""
        return self.supernet.cost(arch)

    def macs(self, codes_NF: Codes) -> NDArray[np.int64]:
        """MACs (N,) of encoded architectures for this run's classes and channels."""
        return self.supernet.macs(codes_NF)


class RunCommand(Command):
    """A command that reads a finished run."""

    run: Path = Field(DEFAULT_RUN, description="folder of a finished run")
    data: Path | None = Field(
        None, description="where the run's images are now, if they moved since it was trained"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; none: torch decides. Tiny networks are fastest with 1"
    )

    def write_lock(self, shared: bool = False) -> AbstractContextManager[None]:
        """The lock of the run's folder, for commands that write into it.

        Args:
            shared: as `engine.runs.lock.write_lock` takes it.

        Raises:
            UserError: there is no finished run, or another process writes there.
        """
        Run.open(self.run)  # first, so that a folder that is no run stays as it is
        return write_lock(self.run, shared)

    @contextmanager
    def processes(self, remedy: str, writes: bool = True) -> Iterator[tuple[Ranks, torch.device]]:
        """This process among those that torchrun started, and its device.

        Args:
            remedy: the end of the error when another process is gone.
            writes: whether the first process writes into the run folder, which is then locked.
        """
        with (
            join(self.device, remedy) as (ranks, device),
            self.write_lock() if writes and ranks.first else nullcontext(),
        ):
            yield ranks, device

    def open(self, ranks: Ranks = ALONE, device: torch.device | None = None) -> TrainedSupernet:
        """Open the run with its supernet, or with the one network that it trained.

        Args:
            ranks: the processes that open it; the first one does so before the others.
            device: where this process computes; None: where `--device` says.
        """
        use_threads(self.threads)
        with ranks.first_before_others():
            return TrainedSupernet(self.run, device or pick_device(self.device), self.data)

    def open_supernet(self, ranks: Ranks = ALONE, device: torch.device | None = None) -> TrainedSupernet:
        """Open the run with its supernet; arguments as of `open`.

        Raises:
            UserError: the run trained one architecture alone, or nothing yet.
        """
        trained = self.open(ranks, device)
        # Its subnets, or its classifier, would measure at chance.
        if trained.model.pretrained_only:
            raise UserError(
                f"Run '{self.run}' is a start for training: python -m ofa.train --config ofa/finetune --init "
                f"{self.run}."
            )
        if trained.model.arch is not None:
            raise UserError(
                f"Run '{self.run}' is one architecture trained alone, not a supernet; name a supernet with "
                "--run."
            )
        return trained
