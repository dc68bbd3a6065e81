"""Handwritten digits that scikit-learn ships: a real data set that needs no download."""

from typing import Literal

import numpy as np
from pydantic import Field

from engine.data.arrays import Arrays, ArraySource
from engine.data.split import hold_out
from engine.seed import derive


class Digits(ArraySource):
    """scikit-learn's 1,797 digits, 8 x 8; 539 of them, always the same, are the test split."""

    name: Literal["digits"] = "digits"
    val: float = Field(0.4, gt=0, lt=1, description="fraction of the training images held out for validation")
    crop: int = Field(1, ge=0, description="random crop: pixels of padding; 0: none")
    flip: bool = Field(False, description="random horizontal flip")

    def read(self) -> tuple[Arrays, list[str]]:
        """The digits with values 0 to 16 spread over 0 to 255."""
        # Imported here: scikit-learn takes a second, which other sources need not wait for.
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images / 16 * 255).astype(np.uint8)[..., None]
        labels = bunch.target.astype(np.int64)
        # Not by the seed of the run: results of different seeds are compared on the same test images.
        train, test = hold_out(labels, 0.3, np.random.default_rng(derive(0, "digits test split")))
        arrays = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
        return arrays, [str(digit) for digit in range(10)]
