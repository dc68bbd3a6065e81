"""model.json: what the weights of a run belong to. And the images of the run once more, for later stages."""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from engine.config import Config, validate
from engine.data.dataset import Data
from engine.data.sources import DataConfig, load_data
from engine.errors import UserError
from engine.run import Run, read_json, write_json


class ImageModel(Config):
    """What every kind of model.json says of its images. A kind adds what its network is."""

    classes: tuple[str, ...] = Field(description="in the order of the logits")
    mean: tuple[float, ...] = Field(description="subtracted from each channel of an image in [0, 1]")
    std: tuple[float, ...] = Field(description="divides each channel then")
    preprocessing: dict[str, Any] = Field(description="how an image file becomes a square")

    @property
    def channels(self) -> int:
        """Input channels."""
        return len(self.mean)


class DataOfRun(Config):
    """The part of config.yaml that later stages need: which images, and which seed split them."""

    data: DataConfig
    seed: int


def image_facts(data: Data) -> dict[str, Any]:
    """The fields of `ImageModel` for these images."""
    return {
        "classes": tuple(data.classes),
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "preprocessing": data.preprocessing(),
    }


def write_model(path: Path, model: ImageModel, what: str) -> None:
    """Write model.json, or check that a resumed run still has the `what` and the data that it was started
    with.

    Raises:
        UserError: it has not.
    """
    if path.exists() and validate(type(model), read_json(path), str(path)) != model:
        raise UserError(
            f"The {what} or the images of run '{path.parent}' changed since it was started; restore them or "
            "use --overwrite."
        )
    write_json(path, model.model_dump(mode="json"))


def open_images(run: Run, model: ImageModel, device: torch.device, images: Path | None = None) -> Data:
    """The data that a run was trained on. images: where it is now, if it moved.

    Raises:
        UserError: it is missing, or other data than `model` says.
    """
    values = {name: value for name, value in run.config.items() if name in DataOfRun.model_fields}
    source = validate(DataOfRun, values, str(run.path / "config.yaml"))
    if images is not None:
        source = validate(
            DataOfRun, {"seed": source.seed, "data": source.data.model_dump() | {"path": images}}, "--data"
        )
    data = load_data(source.data, device, source.seed)
    if (tuple(data.classes), tuple(data.mean), tuple(data.std)) != (model.classes, model.mean, model.std):
        raise UserError(
            f"The images of run '{run.path}' are not those it was trained on (classes or pixels changed); "
            "restore them or train again."
        )
    return data
