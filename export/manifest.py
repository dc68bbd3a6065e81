"""What is known about an exported file: beside it as `<name>.json`, and in its own metadata. `docs/export.md`
lists the keys."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.config import validate
from engine.errors import UserError
from engine.run import read_json

SUFFIXES = (".onnx", ".ort")


class Tensor(BaseModel):
    """An input or output of the file; a free axis has a name instead of a number."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]


class Accuracy(BaseModel):
    """Top-1 in [0, 1] on `images` images of `split`: of the torch module, and of this file. predicted: what
    selection expected."""

    model_config = ConfigDict(frozen=True)

    predicted: float | None = None
    torch: float
    file: float
    images: int
    split: str = "val"


class Manifest(BaseModel):
    """One exported file. Files written by later versions may say more."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file: str
    subnet: str
    target: str
    precision: str
    input: Tensor
    output: Tensor
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any] | None
    architecture: dict[str, Any]
    macs: int
    params: int
    accuracy: Accuracy | None
    parity: dict[str, Any]
    quantization: dict[str, Any] | None
    milliseconds: float
    opset: int
    ir_version: int
    bytes: int
    sha256: str
    versions: dict[str, str]


def manifest_path(path: Path) -> Path:
    """Where the manifest of the model file `path` is."""
    return path.with_suffix(".json")


def is_manifest(path: Path) -> bool:
    """Whether a JSON file is a manifest, of whatever version."""
    try:
        return {"file", "target", "subnet"} <= set(read_json(path))
    except (UserError, TypeError):
        return False


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path, check: bool = True) -> Manifest:
    """The manifest of the model file `path`; with `check`, only if the file is, byte for byte, what was
    verified.

    Raises:
        UserError: the file or its manifest is missing, or damaged.
    """
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
    beside = manifest_path(path)
    if not beside.is_file():
        raise UserError(
            f"'{path}' has no manifest '{beside.name}' beside it; copy that too, or export again with python "
            "-m export.onnx."
        )
    manifest = validate(Manifest, read_json(beside), str(beside))
    if check:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise UserError(
                f"'{path}' has {size} bytes, but {manifest.bytes} were verified; it is truncated or changed: "
                "copy it again."
            )
        if digest(path) != manifest.sha256:
            raise UserError(
                f"'{path}' is not, byte for byte, the file that was verified (SHA-256 differs); copy it or "
                "export it again."
            )
    return manifest


def exported(folder: Path) -> list[Path]:
    """The model files in a folder that have a manifest, fewest MACs first.

    Raises:
        UserError: there is none, or a manifest is damaged.
    """
    paths = [path for path in folder.glob("*") if path.suffix in SUFFIXES and manifest_path(path).is_file()]
    if not paths:
        raise UserError(
            f"Folder '{folder}' holds no exported file with its manifest; write one with python -m "
            "export.onnx."
        )
    return sorted(paths, key=lambda path: (read_manifest(path, check=False).macs, path.name))
