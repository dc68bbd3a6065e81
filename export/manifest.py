"""What is known about an exported file: a JSON file beside it, and where the format has some, its metadata.

`docs/export.md` lists the keys.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from engine.config import validate
from engine.errors import UserError
from engine.outside.names import ClassNames, PlainName
from engine.run import digest, read_json
from export.formats import format_of, is_model_file

Share = Annotated[float, Field(ge=0, le=1)]


class Tensor(BaseModel):
    """An input or output of the file. A free axis has a name instead of a number."""

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.layout} ({', '.join(map(str, self.shape))})"


class FeatureMap(Tensor):
    """A map that a backbone gives: so many times smaller than the image, with so many channels."""

    stride: int
    channels: int


class Accuracy(BaseModel):
    """Top-1 in [0, 1] on some images of a split.

    Args:
        predicted: the accuracy that the predictor predicted; None without a prediction.
        torch: accuracy of the torch module.
        file: accuracy of this file.
        images: how many images were classified.
        split: the split that they belong to.
    """

    model_config = ConfigDict(frozen=True)

    predicted: Share | None = None
    torch: Share
    file: Share
    images: PositiveInt
    split: str = "val"


class Compiled(BaseModel):
    """What a compiler for an NPU made of the graph.

    Args:
        chip, npu: what the file is for, as the compiler wrote it into the file; None if it did not.
        contexts: programs for the NPU. The whole graph is on it if this is 1 and nothing is `outside`.
        outside: operators of the nodes that stayed with onnxruntime's CPU provider.
    """

    model_config = ConfigDict(frozen=True)

    chip: str | None
    npu: str | None
    contexts: int
    outside: tuple[str, ...]

    def __str__(self) -> str:
        made_for = f"for {self.chip or 'an unknown chip'} ({self.npu or 'unknown NPU'})"
        if self.contexts == 1 and not self.outside:
            return f"one context {made_for}"
        kinds = ", ".join(sorted(set(self.outside)))
        rest = f", {len(self.outside)} nodes outside ({kinds})" if self.outside else ""
        return f"{self.contexts} contexts{rest} {made_for}"


class Manifest(BaseModel):
    """One exported file. A later version may write more keys.

    features are the outputs of a backbone, of which `output` is the last; None for a classifier.
    weights says whose weights the training started from: nothing where it started from scratch.
    weights_sha256 is that of the run's weights.safetensors; None for a module that comes from no run.
    milliseconds is the time of one image where the file was written; None where that tells nothing of the
    device. Formats that are no ONNX graph have neither opset nor ir_version. not_run says why the file was
    not run where it was written: then nothing was compared, and parity is None.
    """

    # Later versions, and `facts` of export.to_onnx, add keys; bundles carry all of them on.
    model_config = ConfigDict(extra="allow", frozen=True)

    file: PlainName
    subnet: PlainName
    target: str
    precision: str
    input: Tensor
    output: Tensor
    features: tuple[FeatureMap, ...] | None = None
    classes: ClassNames | None
    preprocessing: dict[str, Any] | None
    architecture: dict[str, Any]
    weights: dict[str, Any] | None = None
    weights_sha256: str | None = None
    macs: PositiveInt
    params: PositiveInt
    accuracy: Accuracy | None
    parity: dict[str, Any] | None
    not_run: str | None = None
    compiled: Compiled | None = None
    quantization: dict[str, Any] | None
    milliseconds: FiniteFloat | None = None
    opset: int | None
    ir_version: int | None
    bytes: int
    sha256: str
    versions: dict[str, str]


def manifest_path(path: Path) -> Path:
    """Where the manifest of a model file is.

    Raises:
        UserError: its name ends in none of the known ways.
    """
    return format_of(path).manifest_path(path)


def is_manifest(path: Path) -> bool:
    """Whether a JSON file is a manifest, of whatever version."""
    try:
        # Three keys that every version wrote. Another program may have written a .json beside its model.
        values = read_json(path)
    except UserError:
        return False
    return isinstance(values, dict) and {"file", "target", "subnet"} <= values.keys()


def read_manifest(path: Path | str, check: bool = True) -> Manifest:
    """The manifest of a model file.

    Args:
        path: the model file.
        check: whether to refuse a file that is not, byte for byte, what was verified.

    Raises:
        UserError: the file or its manifest is missing or damaged, or its name ends in none of the known ways.
    """
    path = Path(path)
    beside = manifest_path(path)
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
    if not beside.is_file():
        raise UserError(
            f"'{path}' has no manifest '{beside.name}' beside it; copy that too, or export again with python "
            "-m export.onnx."
        )
    manifest = validate(Manifest, read_json(beside), str(beside))
    if not check:
        return manifest
    parts = format_of(path).parts(path)
    for part in parts:
        if not part.is_file():
            raise UserError(f"'{path}' has no '{part.name}' beside it, which is a part of it; copy that too.")
    size = sum(part.stat().st_size for part in parts)
    # The size is compared first: it is known at once, and tells the usual damage, a copy that was cut off.
    if size != manifest.bytes:
        raise UserError(
            f"'{path}' has {size} bytes, but {manifest.bytes} were verified; it is truncated or changed: "
            "copy it again."
        )
    if digest(*parts) != manifest.sha256:
        raise UserError(
            f"'{path}' is not, byte for byte, the file that was verified (SHA-256 differs); copy it or "
            "export it again."
        )
    return manifest


def exported_files(folder: Path) -> list[Path]:
    """The model files in a folder that have a manifest, fewest MACs first.

    Raises:
        UserError: there is none, or a manifest is damaged.
    """
    found = []
    for path in folder.glob("*"):
        if is_model_file(path) and manifest_path(path).is_file():
            # Not checked here: hashing all files takes long, and a file is checked when it is opened.
            found.append((read_manifest(path, check=False).macs, path.name, path))
    if not found:
        raise UserError(
            f"Folder '{folder}' holds no exported file with its manifest; write one with python -m "
            "export.onnx."
        )
    return [path for _, _, path in sorted(found)]
