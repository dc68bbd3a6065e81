"""A folder of image files, one folder a class."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from engine.config import Located
from engine.data.dataset import Data, ImageSource

Share = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]


class ImageFolder(ImageSource):
    """A folder with train/<class>/* and val/<class>/* or test/<class>/*; any classes, any sizes."""

    name: Literal["imagefolder", "imagenet"]
    path: Located = Field(description="folder that holds train/ and val/ or test/")
    size: int = Field(224, ge=8, description="side of the square crop in pixels")
    crop_scale: float = Field(
        0.08, gt=0, le=1, description="least share of the image that a random crop covers"
    )
    flip: bool = Field(True, description="random horizontal flip")
    policy: Literal["none", "autoaugment", "randaugment"] = Field(
        "none", description="torchvision's augmentation policy"
    )
    jitter: tuple[Share, Share, Share, Hue] = Field(
        (0, 0, 0, 0),
        description=(
            "random changes of brightness, contrast and saturation, up to this share, and of hue, up to "
            "this turn"
        ),
    )
    workers: int = Field(2, ge=0, description="processes that decode images")

    def load(self, device: torch.device, seed: int) -> Data:
        """List and check the files."""
        # Imported here: torchvision's transforms take a second, which other sources need not wait for.
        from engine.data.folder_data import FolderData

        return FolderData(self, device, seed)
