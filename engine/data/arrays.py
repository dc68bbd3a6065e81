"""Small images that fit on the device: one uint8 tensor a split, augmented there in batches."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.compute.device import send
from engine.data.augment import cutout, random_crop, random_flip
from engine.data.balance import Ints
from engine.data.dataset import Batch, Data, ImageSource, IndexedData, Split, Subset, stream_name
from engine.data.split import describe_hold_out, hold_out
from engine.seed import numpy_generator, torch_generator

# Images uint8 (N, H, W, C) and classes int64 (N,) of each split.
Arrays = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


class ArraySource(ImageSource):
    """A source that reads all its images into memory. A child says how, in `read`."""

    crop: int = Field(4, ge=0, description="random crop: pixels of padding; 0: none")
    flip: bool = Field(True, description="random horizontal flip")
    cutout: int = Field(
        0, ge=0, description="side of the square that cutout fills with the mean colour; 0: none"
    )

    def read(self) -> tuple[Arrays, list[str]]:
        """Read the arrays of `train` and `test`, and the names of the classes in the order of the labels.

        Raises:
            UserError: the data is missing, damaged or does not fit.
        """
        raise NotImplementedError

    def load(self, device: torch.device, seed: int) -> Data:
        """Read the arrays and hold out the validation split."""
        arrays, classes = self.read()
        x, y = arrays["train"]
        kept, held = hold_out(y, self.val, numpy_generator(seed, "validation"))
        splits = {"train": (x[kept], y[kept]), "val": (x[held], y[held]), "test": arrays["test"]}
        data = ArrayData(self, splits, classes, device, seed)
        data.notes += describe_hold_out(classes, y, held, self.val, "validation")
        return data


class ArrayData(IndexedData):
    """Images of one size that live on the device.

    Args:
        config: the source, which says how they are augmented.
        arrays: images and classes of each split.
        classes: names of the classes.
        device: where the images live.
        seed: decides order and augmentation.
    """

    def __init__(
        self, config: ArraySource, arrays: Arrays, classes: list[str], device: torch.device, seed: int
    ):
        # From the training images alone, as the other splits stand for images that nobody has seen.
        x_train = arrays["train"][0]
        mean = x_train.mean((0, 1, 2)) / 255
        # A channel of one colour has no deviation; dividing by it would give infinities.
        std = np.maximum(x_train.std((0, 1, 2)) / 255, 1e-3)
        super().__init__(config, classes, mean.tolist(), std.tolist(), x_train.shape[1], device, seed)
        self.pixels_sha256 = hashlib.sha256(np.ascontiguousarray(x_train).data).hexdigest()
        self.augment = config
        # Cutout's colour, in pixels: images are augmented as uint8 and normalised afterwards.
        self._fill = (self._mean * 255).round().to(torch.uint8)
        self.splits: dict[str, Batch] = {}
        for name, (x, y) in arrays.items():
            x_NCHW = torch.from_numpy(x).to(device).permute(0, 3, 1, 2)
            self.splits[name] = x_NCHW, torch.from_numpy(y).to(device)
        # On the CPU, where orders are drawn.
        self._labels = {name: y for name, (_, y) in arrays.items()}
        self._both: Batch | None = None

    def count(self, split: Split) -> int:
        return len(self.splits[split][1])

    def labels(self, subset: Subset) -> Ints:
        if subset == "both":
            return np.concatenate([self.labels("train"), self.labels("val")])
        return self._labels[subset]

    def preprocessing(self) -> dict[str, Any]:
        return {"image_size": self.size}

    def _images(self, subset: Subset) -> Batch:
        if subset != "both":
            return self.splits[subset]
        if self._both is None:
            # Joined at the first use: a copy of all images, which only some searches need.
            x_train, y_train = self.splits["train"]
            x_val, y_val = self.splits["val"]
            self._both = torch.cat([x_train, x_val]), torch.cat([y_train, y_val])
        return self._both

    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        # Every rank augments the whole batch: its draws are then those of a single process, and they cost
        # little beside a step.
        images, labels = self._images(subset)
        if not batches:
            return
        # The order goes to the device once an epoch: one copy instead of one in each step.
        order_SB = send(torch.from_numpy(np.stack(batches)), self.device)
        # A stream for each step, so that a resumed run needs no draws of the steps that it skips.
        for step, where in enumerate(order_SB, start=skip):
            generator = torch_generator(self.device, self.seed, *stream_name(subset, "augment"), epoch, step)
            x = images[where]
            if self.augment.crop:
                x = random_crop(x, self.augment.crop, generator)
            if self.augment.flip:
                x = random_flip(x, generator)
            if self.augment.cutout:
                x = cutout(x, self.augment.cutout, generator, self._fill)
            yield x[share], labels[where[share]]

    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        images, labels = self.splits[split]
        for where in torch.split(send(torch.from_numpy(indices), self.device), batch_size):
            yield images[where], labels[where]
