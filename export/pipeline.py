"""From a torch module to a file for one target, proved before it gets its name. `export.to_onnx` and `python
-m export.onnx` share it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.onnx_file import set_metadata, to_proto
from engine.run import versions, write_json
from export.graph import OPERATORS, Array, plain_operators, to_float16, write_ort
from export.manifest import Manifest, digest, is_manifest, manifest_path
from export.norms import fold_norms
from export.quantize import Quantized, quantize
from export.targets import Target
from export.verify import Parity, Reference, check_model, compare, milliseconds, open_session, run_file

Layout = Literal["NCHW", "NHWC"]


class Bake(NamedTuple):
    """What goes into the graph around the network: uint8 pixels in, normalised there; softmax if wanted.

    Args:
        mean, std: per channel, of pixels scaled to 0..1.
        layout: of the input.
        softmax: whether the output is probabilities.
    """

    mean: Sequence[float]
    std: Sequence[float]
    layout: Layout = "NHWC"
    softmax: bool = False

    def pixels(self, x_NCHW: Tensor) -> Tensor:
        """Normalised images back to the uint8 pixels that such a file takes, in its layout."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        x = ((x_NCHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1).contiguous() if self.layout == "NHWC" else x


class Baked(nn.Module):
    """A classifier of normalised images as one of uint8 pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, bake: Bake):
        super().__init__()
        self.network, self.bake = network, bake
        mean, std = torch.tensor(bake.mean), torch.tensor(bake.std)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])
        self.train(network.training)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2) if self.bake.layout == "NHWC" else pixels
        logits = self.network(x.to(torch.float32).contiguous() * self.scale + self.shift)
        return torch.softmax(logits, 1) if self.bake.softmax else logits


class Subject(NamedTuple):
    """What one network's files are made of and proved with.

    Args:
        module: takes what the files take: eval mode, CPU, float32.
        example: two inputs or more.
        reference: the module on real images.
        calibration: batches of inputs for 8 bits.
        layout: of the input.
        probabilities: whether it ends with softmax.
        parameters: numbers that the network has; a file with more is refused.
        facts: the manifest's keys that do not depend on the target.
        graphs: what torch exported so far, since targets share it.
    """

    module: nn.Module
    example: Array
    reference: Reference
    calibration: Sequence[Array]
    layout: Layout
    probabilities: bool
    parameters: int
    facts: dict[str, Any]
    graphs: dict[tuple[str, int], onnx.ModelProto]


class Written(NamedTuple):
    """What became of one file: its manifest, or what is wrong."""

    manifest: Manifest | None
    parity: Parity | None
    complaint: str


def write_file(subject: Subject, target: Target, path: Path, max_drop: float) -> Written:
    """The file for `target` at `path` with its manifest beside it, if it passes; an older one is removed if
    it does not.

    Raises:
        UserError: torch cannot export the module.
    """
    if manifest_path(path).exists() and not is_manifest(manifest_path(path)):
        raise UserError(
            f"'{manifest_path(path)}' is not a manifest of ours, and would be replaced by one; choose "
            f"another name than {path.name}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = _prove(subject, target, path, max_drop)
    except UserError:
        _remove(path)
        raise
    if written.manifest is None:
        _remove(path)
    return written


def _remove(path: Path) -> None:
    """An older file must not survive a failure; an interruption is none."""
    for stale in (path, manifest_path(path), path.with_suffix(OPERATORS)):
        stale.unlink(missing_ok=True)


def _prove(subject: Subject, target: Target, path: Path, max_drop: float) -> Written:
    output = "probabilities" if subject.probabilities else "logits"
    model = _export(subject, target, output)
    complaint = check_model(model, path.name, subject.parameters)
    if complaint:
        return Written(None, None, complaint)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as name:
        folder = Path(name)
        model, quantized = _in_precision(model, subject, target, folder, max_drop)
        candidate = folder / path.name
        _save(model, candidate)
        parity = quantized.parity if quantized else compare(subject.reference, candidate)
        complaint = quantized.complaint if quantized else parity.complaint(target.precision)
        lost = 100 * (subject.reference.accuracy - parity.accuracy)
        if not complaint and lost > max_drop + 1e-9:
            complaint = f"loses {lost:.2f} points of top-1 (limit {max_drop:g})"
        if complaint:
            return Written(None, parity, complaint)
        took = milliseconds(candidate, subject.example)
        facts = _facts(subject, target, path, model, output, parity, quantized, took)
        set_metadata(model, {key: value for key, value in facts.items() if value is not None})
        first = next(iter(subject.reference.batches()))[0]
        before = run_file(open_session(candidate), first)
        _save(model, candidate)
        assert np.array_equal(run_file(open_session(candidate), first), before), (
            "metadata changed what the file computes"
        )
        facts |= {"bytes": candidate.stat().st_size, "sha256": digest(candidate)}
        if target.format == "ort":
            candidate.with_suffix(OPERATORS).replace(path.with_suffix(OPERATORS))
        candidate.replace(path)
        write_json(manifest_path(path), facts)
    return Written(Manifest.model_validate(facts), parity, "")


def _export(subject: Subject, target: Target, output: str) -> onnx.ModelProto:
    """The module's graph in the target's form."""
    key = target.batch, target.opset
    if key not in subject.graphs:
        example = torch.from_numpy(subject.example if target.batch == "any" else subject.example[:1])
        try:
            subject.graphs[key] = to_proto(
                subject.module, example, any_batch=target.batch == "any", output=output, opset=target.opset
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            name = type(subject.module).__name__
            raise UserError(
                f"torch cannot export {name} as ONNX: {reason}; its forward must not depend on the values of "
                "the image."
            ) from None
    model = onnx.ModelProto()
    model.CopyFrom(subject.graphs[key])
    fold_norms(model)
    model.ir_version = min(model.ir_version, target.ir)
    if target.activations == "relu6":
        plain_operators(model)
    return model


def _in_precision(
    model: onnx.ModelProto, subject: Subject, target: Target, folder: Path, max_drop: float
) -> tuple[onnx.ModelProto, Quantized | None]:
    if target.precision == "float16":
        return to_float16(model), None
    if target.precision == "float32":
        return model, None
    if not subject.calibration:
        raise UserError(
            f"Target {target.name} is quantised, for which it needs images to calibrate with; give some."
        )
    work = folder / "int8.onnx"
    quantized = quantize(model, work, subject.calibration, subject.reference, max_drop)
    return onnx.load(work), quantized


def _save(model: onnx.ModelProto, path: Path) -> None:
    if path.suffix == ".onnx":
        onnx.save(model, path)
        return
    source = path.with_suffix(".onnx")
    onnx.save(model, source)
    write_ort(source, path)
    source.unlink()


def _facts(
    subject: Subject,
    target: Target,
    path: Path,
    model: onnx.ModelProto,
    output: str,
    parity: Parity,
    quantized: Quantized | None,
    took: float,
) -> dict[str, Any]:
    """The manifest of one file, but for its size and hash."""
    reference, count = subject.reference, "batch" if target.batch == "any" else 1
    predicted = subject.facts.get("predicted_accuracy")
    accuracy = {
        "predicted": predicted,
        "torch": reference.accuracy,
        "file": parity.accuracy,
        "images": parity.images,
        "split": "val",
    }
    kind = "uint8" if subject.example.dtype == np.uint8 else "float32"
    facts = {
        "file": path.name,
        "target": target.name,
        "precision": target.precision,
        "input": {
            "name": "image",
            "dtype": kind,
            "layout": subject.layout,
            "shape": [count, *subject.example.shape[1:]],
        },
        "output": {
            "name": output,
            "dtype": "float32",
            "layout": "NC",
            "shape": [count, reference.output_NK.shape[1]],
        },
        **{key: value for key, value in subject.facts.items() if key != "predicted_accuracy"},
        "accuracy": accuracy if reference.labelled else None,
        "parity": parity._asdict() | {"batches": [1, len(next(iter(reference.batches()))[0])]},
        "quantization": None,
        "milliseconds": round(took, 4),
        "opset": next(o.version for o in model.opset_import if o.domain == ""),
        "ir_version": model.ir_version,
        "versions": versions(),
    }
    if quantized is not None:
        facts["quantization"] = {
            "float_layers": list(quantized.float_layers),
            "layers": quantized.layers,
            "calibration_images": sum(map(len, subject.calibration)),
            "drop": quantized.drop,
        }
    return facts
