"""Archives of arrays that claim what they do not hold, or hold what nobody asked for."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.npz import Npz
from engine.errors import UserError

X, Y = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), np.arange(20) % 2


def written(path: Path, **changed: Any) -> Path:
    np.savez(path, **{"x_train": X, "x_test": X, "y_train": Y, "y_test": Y} | changed)
    return path


def read(path: Path) -> Any:
    return Npz(name="npz", path=path).read()


def replace(path: Path, name: str, content: bytes) -> Path:
    """The archive with another content of one member."""
    with zipfile.ZipFile(path) as old:
        members = {member: old.read(member) for member in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member, value in (members | {name: content}).items():
            new.writestr(member, value)
    return path


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("in_columns", [False, True])
def test_arrays_are_what_numpy_reads(tmp_path: Path, in_columns: bool) -> None:
    x = np.asfortranarray(X) if in_columns else X
    arrays, names = read(written(tmp_path / "a.npz", x_train=x, classes=np.array(["a", "b"])))
    assert names == ["a", "b"]
    assert np.array_equal(arrays["train"][0][..., 0], X)
    arrays["test"][0][0] = 0  # torch complains about arrays that cannot be written to


@pytest.mark.parametrize(
    "content",
    [
        header((50_000_000, 256, 256)) + b"0" * 100,  # three terabytes
        header((20, 8, 8)) + b"0" * 100,
        header((2, 8, 8)) + b"0" * 1280,
        header((-2, -8, 80)) + b"0" * 1280,
        header((10**30, 8, 8)),
        b"",
        b"\x93NUMPY\x09\x00",
        header((20, 8, 8), "|O") + b"0" * 160,
        header((20, 8, 8))[:40],
    ],
)
def test_headers_that_claim_something_else(tmp_path: Path, content: bytes) -> None:
    path = replace(written(tmp_path / "a.npz"), "x_train.npy", content)
    with pytest.raises(UserError, match="cannot be read as"):
        read(path)


def test_a_directory_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = replace(written(tmp_path / "a.npz"), "x_train.npy", header((2**31, 1)) + b"0" * 100)
    content = path.read_bytes()
    true = len(header((2**31, 1)) + b"0" * 100).to_bytes(4, "little")
    claimed = (len(header((2**31, 1))) + 2**31).to_bytes(4, "little")
    assert true in content
    path.write_bytes(content.replace(true, claimed))
    with pytest.raises(UserError, match="cannot be read as"):
        read(path)


def test_other_members_are_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", other=np.array([object()], dtype=object))
    path = replace(path, "large.npy", header((50_000_000, 256, 256)))
    assert len(read(path)[0]["train"][0]) == 20


def test_images_of_no_pixels(tmp_path: Path) -> None:
    empty = np.zeros((20, 0, 0), np.uint8)
    with pytest.raises(UserError, match="square uint8 images"):
        read(written(tmp_path / "a.npz", x_train=empty, x_test=empty))


@pytest.mark.parametrize("names", [["a", "a"], ["", "b"], ["a\nb", "c"]])
def test_class_names_that_cannot_be_told_apart(tmp_path: Path, names: list[str]) -> None:
    import torch

    path = written(tmp_path / "a.npz", classes=np.array(names))
    with pytest.raises(UserError, match="The images cannot be used"):
        Npz(name="npz", path=path).load(torch.device("cpu"), 0)
