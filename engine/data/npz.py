"""Images and labels in one .npz file, as NumPy's `savez` writes it."""

import math
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.config import Located
from engine.data.arrays import Arrays, ArraySource
from engine.errors import UserError, shortened

# Versions of the header of an array; later ones are for names that no array here has.
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
NEEDED = ("x_train", "y_train", "x_test", "y_test")
# Everything that NumPy raises for files that are no archive, are truncated, or hold objects.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    RuntimeError,  # an encrypted member
    MemoryError,
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
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            names = [name.removesuffix(".npy") for name in members.namelist()]
            found = {}
            for name in (*NEEDED, "classes"):
                # Others are not read: they may hold anything, and of any size.
                if name in names:
                    found[name] = _member(members, f"{name}.npy")
    except UNREADABLE as error:
        raise UserError(
            f"Data file '{path}' cannot be read as .npz ({shortened(str(error))}); pass --data.path with one "
            "that holds x_train y_train x_test y_test."
        ) from None
    missing = set(NEEDED) - found.keys()
    if missing:
        holds = shortened(", ".join(names)) or "nothing"
        raise UserError(f"Data file '{path}' lacks {', '.join(sorted(missing))}; it holds {holds}.")
    return found


def _member(members: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of the archive, if the archive has as many bytes of it as the array's header claims.

    Raises:
        ValueError: it has more or fewer, or the array holds objects, which are pickled.
    """
    info = members.getinfo(name)
    with members.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in READ_HEADER:
            raise ValueError(f"{name} has the version {version}, which is not known")
        shape, in_columns, dtype = READ_HEADER[version](file)
        # A pickle may run any program: a file from somebody else must not.
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        claimed = math.prod(shape) * dtype.itemsize
        # NumPy would take the memory for what the header claims, and read afterwards. The size in the
        # archive's directory may be false as well, so what counts is what can be read.
        content = bytearray(file.read(min(claimed, info.file_size) + 1))
    if len(content) != claimed:
        raise ValueError(f"{name} claims {claimed:,} bytes, but has others")
    if not claimed:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C")


def _images(
    path: Path, split: str, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images as (N, H, W, C) beside their labels (N,)."""
    x = x[..., None] if x.ndim == 3 else x
    if (
        x.dtype != np.uint8
        or x.ndim != 4
        or x.shape[3] not in (1, 3)
        or x.shape[1] != x.shape[2]
        or not x.shape[1]
    ):
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
