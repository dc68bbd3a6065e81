"""Images and labels in one .npz file, as NumPy's `savez` writes it."""

import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.config import Located
from engine.data.arrays import Arrays, ArraySource
from engine.errors import UserError

# Everything that NumPy raises for files that are no archive, are truncated, or hold objects.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    NotImplementedError,
    BadZipFile,
    zlib.error,
    TokenError,
)


class Npz(ArraySource):
    """An .npz file with x_train, x_test: uint8 (N, H, W) or (N, H, W, C); y_train, y_test: integers.

    It may also hold `classes`, the names of the classes.
    """

    name: Literal["npz"]
    path: Located = Field(description="the .npz file")

    def read(self) -> tuple[Arrays, list[str]]:
        """Read and check the arrays. Labels may be any integers; in their order they become 0, 1, 2, ..."""
        found = _members(self.path)
        for name in ("y_train", "y_test"):
            y = found[name]
            if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
                raise UserError(
                    f"Data file '{self.path}': {name} must be integers (N,), but is {y.dtype} {y.shape}."
                )
        # The training images decide which classes there are: no other class can be learned.
        values, y_train = np.unique(found["y_train"], return_inverse=True)
        unseen = np.setdiff1d(found["y_test"], values)
        if len(unseen):
            raise UserError(
                f"Data file '{self.path}' has class {unseen[0]} in y_test that y_train lacks; add training "
                "images of it or drop it."
            )
        if len(values) < 2:
            raise UserError(
                f"Data file '{self.path}' has only one class in y_train; a classifier needs two or more."
            )
        names = [str(name) for name in np.atleast_1d(found.get("classes", values))]
        if len(names) != len(values):
            raise UserError(
                f"Data file '{self.path}' names {len(names)} classes but y_train has {len(values)}."
            )
        labels = {"train": y_train, "test": np.searchsorted(values, found["y_test"])}
        arrays = {split: _images(self.path, split, found[f"x_{split}"], y) for split, y in labels.items()}
        shapes = [x.shape[1:] for x, _ in arrays.values()]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"Data file '{self.path}': images of x_train are {shapes[0]} and of x_test {shapes[1]}; they "
                "must agree."
            )
        return arrays, names


def _members(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file by name.

    Raises:
        UserError: the file cannot be read, or one of the four arrays that a data set needs is missing.
    """
    try:
        # allow_pickle=False: a file from somebody else must not run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            found = {name: members[name] for name in members.files}
    except UNREADABLE as error:
        raise UserError(
            f"Data file '{path}' cannot be read as .npz ({error}); pass --data.path with one that holds "
            "x_train y_train x_test y_test."
        ) from None
    missing = {"x_train", "y_train", "x_test", "y_test"} - found.keys()
    if missing:
        holds = ", ".join(found) or "nothing"
        raise UserError(f"Data file '{path}' lacks {', '.join(sorted(missing))}; it holds {holds}.")
    return found


def _images(
    path: Path, split: str, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images as (N, H, W, C) beside their labels (N,)."""
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.shape[1] != x.shape[2]:
        raise UserError(
            f"Data file '{path}': x_{split} must be square uint8 images (N, H, W) or (N, H, W, 1 or 3), but "
            f"is {x.dtype} {x.shape}."
        )
    if len(x) != len(y) or len(x) == 0:
        raise UserError(
            f"Data file '{path}': x_{split} has {len(x)} images and y_{split} {len(y)} labels; they must be "
            "as many, and not none."
        )
    return x, y.astype(np.int64)
