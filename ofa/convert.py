"""Turn a published checkpoint into a run folder that every later command takes."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.checkpoint import save_weights
from engine.command.cli import Command, main
from engine.command.start import say
from engine.data.folder import ImageFolder
from engine.data.sources import DataConfig, load_data
from engine.model import write_model
from engine.run import Run
from engine.seed import derive
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.trained import model_of, run_flag
from ofa.weights.checkpoints import load_mobilenet_v3, load_supernet, read_checkpoint
from ofa.weights.origins import IMAGENET, origin_of

Kind = Literal[
    "attentive_nas",
    "alphanet",
    "ofa_mbv3",
    "ofa_mbv3_w1.2",
    "ofa_proxyless",
    "ofa_resnet50",
    "torchvision",
    "timm",
]


class Convert(Command):
    """Turn a published checkpoint into a run folder, for selection, export or as the start of a training.

    attentive_nas, alphanet and ofa_* are the supernets that their authors published; torchvision and timm are
    MobileNetV3-Large, which becomes the largest subnet of space ofa_mbv3. Nothing in the file is executed.
    Later stages need images. With images of the checkpoint's own classes, select and export at once; with
    your own, train from it, with a new classifier.

    examples:
      python -m ofa.convert --from attentive_nas net.pth.tar --data.path imagenet --out runs/attentive_nas
      python -m ofa.convert --from timm mobilenetv3_large_100.safetensors --data.path photos --out runs/start
      python -m ofa.train --config ofa/finetune --init runs/start --data.path photos --out runs/photos
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--file",
        "--from",
        "--data.name",
        "--data.path",
        "--data.size",
        "--out",
        "--overwrite",
    )

    file: CliPositionalArg[Path] = Field(description="checkpoint: .pth, .pt, .tar or .safetensors")
    source: Kind = Field(alias="from", description="what the checkpoint is")
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
        """Read, rename, write."""
        tensors = read_checkpoint(self.file)
        # On CPU: nothing is computed with the images here. They give classes, channels and normalisation.
        prepared = self.data.prepared_for(IMAGENET)
        data = load_data(prepared, torch.device("cpu"), self.seed)
        space = space_of(self.source)
        # What the checkpoint has no weights for, such as a new classifier, is drawn from the seed.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(derive(self.seed, "weights"))
            supernet = Supernet(space, len(data.classes), data.channels)
            single_network = self.source in ("torchvision", "timm")
            if single_network:
                fresh = load_mobilenet_v3(supernet, tensors, self.source, self.file)
            else:
                fresh = load_supernet(supernet, tensors, self.file)
        # Only now: a checkpoint or data that cannot be used leaves no run folder behind.
        settings = self.model_copy(update={"data": prepared})
        run = Run.start(self.out, settings, resume=False, overwrite=self.overwrite)
        # One network's weights in a supernet: its other subnets have not learned anything yet.
        pretrained_only = fresh or single_network
        origin = origin_of(self.source, self.file)
        model = model_of(space, None, data, self.calibration_images, origin, pretrained_only)
        write_model(run.path / "model.json", model, "space")
        save_weights(run.path / "weights.safetensors", supernet.state_dict())
        run.finish()
        print(f"space '{space.name}', {space.size():.3g} architectures")
        if fresh:
            print(
                "the classifier is new: the checkpoint has one for another number of classes than the "
                f"{len(data.classes)} of the images"
            )
        if pretrained_only:
            images = f" --data.path {self.data.path}" if isinstance(self.data, ImageFolder) else ""
            say(
                f"next: python -m ofa.train --config ofa/finetune --init {run.path}{images} --out "
                "runs/finetuned"
            )
        else:
            say(f"next: python -m predictors.collect{run_flag(run.path)}")
        return 0


def space_of(kind: Kind) -> Space:
    """The space of a checkpoint.

    torchvision's and timm's networks have a bias in the head that OFA's lack, and torchvision's has another
    epsilon of BatchNorm. With OFA's own settings the largest subnet would not compute the same function.
    """
    if kind not in ("torchvision", "timm"):
        # AlphaNet trained AttentiveNAS's supernet with another loss.
        return load_space("attentive_nas" if kind == "alphanet" else kind)
    space = load_space("ofa_mbv3")
    assert space.head is not None
    head = space.head.model_copy(update={"bias": True})
    return space.model_copy(update={"head": head, "bn_eps": 1e-3 if kind == "torchvision" else 1e-5})


if __name__ == "__main__":
    main(Convert)
