"""The list of data sources. A new source is a file beside this one and a name in one of the two unions."""

from typing import Annotated

import torch
from pydantic import Field

from engine.data.dataset import Data
from engine.data.digits import Digits
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.text import Grammar, TextFolder
from engine.data.torchvision_sets import Torchvision
from engine.errors import UserError

ImageConfig = Digits | Npz | Torchvision | ImageFolder
TextConfig = Grammar | TextFolder

DataConfig = Annotated[ImageConfig, Field(discriminator="name")]
AnyData = Annotated[ImageConfig | TextConfig, Field(discriminator="name")]


def load_data(config: ImageConfig, device: torch.device, seed: int) -> Data:
    """Load the three splits of a source of images.

        data = load_data(Npz(name="npz", path="images.npz"), torch.device("cpu"), seed=0)

    Args:
        config: the settings of the source.
        device: where batches are delivered.
        seed: decides which images are held out for validation and what augmentation draws.

    Raises:
        UserError: the data is missing, damaged or does not fit; or `config` is not a source of images.
    """
    if not isinstance(config, ImageConfig):
        raise UserError(
            f"load_data takes the settings of a source of images, not {config!r}; give Digits(), Npz(...), "
            "Torchvision(...) or ImageFolder(...)."
        )
    return config.load(device, seed)
