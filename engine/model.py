"""model.json, which says what the weights of a run belong to; and the run's images, for later stages."""

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from engine.config import Config, validate
from engine.data.dataset import Data, Preprocessing
from engine.data.sources import DataConfig, load_data
from engine.errors import UserError
from engine.outside.names import ClassNames
from engine.run import Run, read_json, write_json


class WeightsOrigin(Config):
    """Where weights come from that somebody else trained."""

    name: str = Field(description="what their source calls the network")
    source: str = Field(description="who published them: a library, a package, a repository")
    url: str | None = Field(None, description="page of the source")
    licence: str = Field("unknown", description="of the weights, as the source says")
    sha256: str | None = Field(None, description="of the file that was converted, in hexadecimal")


def forbids_commerce(licence: str) -> bool:
    """Whether a licence, by its name, forbids commercial use, as CC BY-NC does."""
    return re.search(r"\bNC\b|non-?commercial", licence, re.IGNORECASE) is not None


class ImageModel(Config):
    """What every kind of model.json says of its images. Each kind adds a description of its network.

    The normalisation belongs to the weights: whoever starts from them takes it from here.
    """

    classes: ClassNames = Field(description="names of the classes in the order of the logits")
    mean: tuple[float, ...] = Field(description="subtracted from each channel of an image in [0, 1]")
    std: tuple[float, ...] = Field(description="each channel is divided by this after the subtraction")
    preprocessing: dict[str, Any] = Field(description="how an image file becomes a square image")
    pixels_sha256: str | None = Field(
        None, description="of the training images, where they are in memory; in hexadecimal"
    )
    weights: WeightsOrigin | None = Field(
        None, description="whose weights the training started from; none: it started from scratch"
    )

    @property
    def channels(self) -> int:
        """Input channels."""
        return len(self.mean)

    @property
    def wanted(self) -> Preprocessing:
        """How a training that starts from these weights prepares its images."""
        how = self.preprocessing
        crop_share, resize = how.get("crop_share"), how.get("resize_interpolation")
        # "bicubic, antialiased" stands there for people, who read it in exported files.
        interpolation = resize.split(",")[0] if resize else None
        return Preprocessing(mean=self.mean, std=self.std, crop_share=crop_share, interpolation=interpolation)

    def same_images(self, other: "ImageModel | Data") -> bool:
        """Whether these are the same classes and pixels, as far as is known, normalised in the same way."""
        normalised = self.mean, self.std
        same_normalisation = normalised == (tuple(other.mean), tuple(other.std))
        # Runs of earlier versions have no digest: their normalisation came from the pixels and tells as much.
        digests = {self.pixels_sha256, other.pixels_sha256} - {None}
        same_pixels = len(digests) <= 1
        return self.classes == tuple(other.classes) and same_normalisation and same_pixels


class DataOfRun(Config):
    """The part of config.yaml that later stages need: which images, and which seed split them.

    split_seed: of a tuned subnet, whose seed is not that of the supernet which split the images.
    """

    data: DataConfig
    seed: int
    split_seed: int | None = None


def image_facts(data: Data) -> dict[str, Any]:
    """The fields of `ImageModel` for these images."""
    return {
        "classes": tuple(data.classes),
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "preprocessing": data.preprocessing(),
        "pixels_sha256": data.pixels_sha256,
    }


def write_model(path: Path, model: ImageModel, what: str) -> None:
    """Write model.json. In a resumed run, check that network and images are still those it started with.

    Args:
        path: model.json of a run folder.
        model: what it shall say.
        what: what the error calls the network's part of `model`, such as "space".

    Raises:
        UserError: the network or the images changed.
    """
    # config.yaml only names files, such as a space's; what they hold may have changed since the start.
    # A resumed run writes it again, with the same content.
    if path.exists() and validate(type(model), read_json(path), str(path)) != model:
        raise UserError(
            f"The {what} or the images of run '{path.parent}' changed since it was started; restore them or "
            "use --overwrite."
        )
    write_json(path, model.model_dump(mode="json"))


def open_images(run: Run, model: ImageModel, device: torch.device, images: Path | None = None) -> Data:
    """Open the data that a run was trained on.

    Args:
        run: the run.
        model: its model.json.
        device: where batches are delivered.
        images: where the data is now, if it moved; None: where the run found it.

    Raises:
        UserError: the data is missing, or it is not the data that `model` describes.
    """
    # The other settings in config.yaml are those of the command that wrote it.
    values = {name: value for name, value in run.config.items() if name in DataOfRun.model_fields}
    source = validate(DataOfRun, values, str(run.path / "config.yaml"))
    if images is not None:
        moved = source.data.model_dump() | {"path": images}
        source = validate(DataOfRun, values | {"data": moved}, "--data")
    seed = source.seed if source.split_seed is None else source.split_seed
    data = load_data(source.data, device, seed)
    check_images(run, model, data)
    return data


def check_images(run: Run, model: ImageModel, data: Data) -> None:
    """Refuse images that are not those of a run.

    Raises:
        UserError: their classes, pixels or normalisation are not those that `model`, its model.json, names.
    """
    if not model.same_images(data):
        raise UserError(
            f"The images of run '{run.path}' are not those it was trained on (classes, pixels or "
            "normalisation changed); restore them or train again."
        )
