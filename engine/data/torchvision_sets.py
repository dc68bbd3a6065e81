"""Data sets that torchvision reads and downloads: CIFAR-10, CIFAR-100 and Fashion-MNIST."""

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from engine.config import Located
from engine.data.arrays import Arrays, ArraySource
from engine.errors import UserError

CLASS_NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}


class Torchvision(ArraySource):
    """A data set that torchvision reads from a folder."""

    name: Literal["cifar10", "cifar100", "fashion_mnist"]
    path: Located = Field(
        Path("data"), validate_default=True, description="folder that holds it, or receives the download"
    )
    download: bool = Field(False, description="download the data set if the folder lacks it")

    def read(self) -> tuple[Arrays, list[str]]:
        """Read the arrays as torchvision keeps them."""
        # Imported here: torchvision takes a second, which other sources need not wait for.
        import torchvision

        kind = getattr(torchvision.datasets, CLASS_NAMES[self.name])
        try:
            train = kind(self.path, train=True, download=self.download)
            test = kind(self.path, train=False, download=self.download)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"Data set {self.name} is not in '{self.path}' ({reason}); pass --data.path with its folder, "
                "--data.download to fetch it, or --data.name npz with an .npz file."
            ) from None
        arrays: Arrays = {}
        for split, found in (("train", train), ("test", test)):
            images = np.asarray(found.data)
            # Grey images have no axis of channels.
            images = images[..., None] if images.ndim == 3 else images
            arrays[split] = images, np.asarray(found.targets, dtype=np.int64)
        return arrays, list(train.classes)
