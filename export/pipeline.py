"""From a torch module to a file for one target, which gets its name only after it was compared with torch.

`export.to_onnx` and `python -m export.onnx` share this module. Some formats are written from the ONNX graph,
others from the torch module; each kind has one function here, and everything else is the same for both. Only
a file whose runtime does not exist for this machine is not compared; its manifest says so (`not_run`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from torch import nn

from engine.errors import UserError
from engine.onnx_file import set_metadata
from engine.run import digest, versions, write_json
from engine.runs.writing import publish, work_folder
from engine.statistics import paired_drop_interval
from export.bake import CenterCrop
from export.formats import find_format
from export.formats.format import Format
from export.formats.onnx import first_line
from export.graph.checks import check_model
from export.graph.gate import gate_note
from export.graph.operators import drop_unused_domains, to_float16
from export.graph.preparation import (
    check_behind_preparation,
    check_preparation,
    crops_to_try,
    put_in_front,
)
from export.graph.quantize import ROUNDING, Quantized, quantize
from export.graph.tracing import fit_to_target, traced_graph
from export.job import ExportJob
from export.manifest import Manifest, is_manifest, manifest_path
from export.targets.target import Target
from export.verify import Parity, compare_file, milliseconds


class Written(NamedTuple):
    """What became of one file.

    Args:
        manifest: what its manifest says; None if the file failed and was not kept.
        parity: how far it was from torch; None if it was refused before it was run, or cannot be run here.
        complaint: half a sentence on what is wrong; empty if the file was kept.
    """

    manifest: Manifest | None
    parity: Parity | None
    complaint: str


class _Candidate(NamedTuple):
    """A file under a temporary name, before anybody decides about it.

    parity: how far it is from torch; None if it was refused before it was run, or cannot be run here.
    complaint: what is wrong with it; may be empty.
    model: its graph, if it was written from one.
    quantized: what became of its quantisation, if it is an 8-bit file.
    """

    parity: Parity | None
    complaint: str
    model: onnx.ModelProto | None = None
    quantized: Quantized | None = None


def write_file(job: ExportJob, target: Target, path: Path, max_drop: float) -> Written:
    """Write the file for a target with its manifest beside it, if it passes; otherwise remove an older file.

    Args:
        job: the network.
        target: the kind of device.
        path: the file; its name must end as that of the target's format.
        max_drop: points of top-1 that the file may lose.

    Raises:
        UserError: torch cannot export the module, the format's runtime is not installed, or the path is not
            one for this target.
    """
    file_format = check_path(path, target)
    file_format.check_installed(to_write=True)
    if job.crop is not None and not file_format.in_example:
        raise UserError(
            f"Target {target.name} cannot take images of any size, which --bake preprocessing asks for; bake "
            "normalize for it."
        )
    # "model.json" beside "model.onnx" may be a file of the user that has nothing to do with it.
    manifest = manifest_path(path)
    if manifest.exists() and not is_manifest(manifest):
        raise UserError(
            f"'{manifest}' is not a manifest of ours, and would be replaced by one; choose another name than "
            f"{path.name}."
        )
    try:
        written = _prove(job, target, file_format, path, max_drop)
    except UserError:
        _remove(file_format, path)
        raise
    except OSError as error:
        raise cannot_write(path, error) from None
    if written.manifest is None:
        _remove(file_format, path)
    return written


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error about a file whose folder takes none."""
    return UserError(f"'{path}' cannot be written ({error.strerror or error}); choose another folder.")


def check_folder(path: Path) -> None:
    """Make the folder of a file, and see whether it takes files.

    Raises:
        UserError: it does not.
    """
    try:
        with work_folder(path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from None


def check_path(path: Path, target: Target) -> Format:
    """The format of a target.

    Raises:
        UserError: the path does not end as the names of its files do.
    """
    file_format = find_format(target.format)
    if not file_format.has(path):
        raise UserError(f"Target {target.name} writes {file_format.suffix} files; name '{path}' so.")
    return file_format


def _remove(file_format: Format, path: Path) -> None:
    """Remove an older file after a failure: nobody should take it for the new one.

    An interruption is no failure, and leaves it.
    """
    for stale in (path, manifest_path(path), *file_format.side_files(path)):
        stale.unlink(missing_ok=True)


def _prove(job: ExportJob, target: Target, file_format: Format, path: Path, max_drop: float) -> Written:
    """Write the file in a temporary folder, compare it, and move it to its place if it passes."""
    # In the same folder, since a rename within one file system is a single step.
    with work_folder(path.parent) as work:
        file = work / path.name
        if file_format.written_from == "graph":
            candidate = _from_graph(job, target, file_format, file, max_drop)
        else:
            assert file_format.written_from == "module"
            candidate = _from_module(job, target, file_format, file)
        parity, complaint = candidate.parity, candidate.complaint
        if parity is not None and not complaint:
            complaint = _lost(job, parity, max_drop)
        if complaint:
            return Written(None, parity, complaint)
        facts = _facts(job, target, path.name, candidate) | file_format.facts(file)
        if candidate.model is not None:
            _embed(facts, candidate.model, job, target, file)
        # Timed last, as a file that fails is not worth the time. The time is not in the file's own metadata,
        # since exporting twice shall give the same bytes.
        facts["milliseconds"] = None
        if not file_format.not_timed_here():
            facts["milliseconds"] = round(milliseconds(file, job.example), 4)
        parts = file_format.parts(file)
        facts |= {"bytes": sum(part.stat().st_size for part in parts), "sha256": digest(*parts)}
        # The manifest comes last: until then the old one, if any, says that the file is not the verified one.
        for new, place in zip(file_format.side_files(file), file_format.side_files(path), strict=True):
            publish(new, place)
        publish(file, path)
        write_json(manifest_path(path), facts)
    return Written(Manifest.model_validate(facts), parity, "")


def _lost(job: ExportJob, parity: Parity, max_drop: float) -> str:
    """Half a sentence on lost accuracy; empty if no more than `max_drop` points are lost."""
    lost = _drop(job, parity)
    if lost > max_drop + ROUNDING:
        return f"loses {lost:.2f} points of top-1 (limit {max_drop:g})"
    return ""


def _drop(job: ExportJob, parity: Parity) -> float:
    """Points of top-1 that a file loses; below 0 if it gains some."""
    return 100 * (job.reference.accuracy - parity.accuracy)


def _from_graph(
    job: ExportJob, target: Target, file_format: Format, file: Path, max_drop: float
) -> _Candidate:
    """Write and compare a file of a format that is written from the ONNX graph."""
    model = _graph(job, target)
    complaint = check_model(model, job.parameters)
    if complaint:
        return _Candidate(None, complaint)
    quantized = None
    if target.precision == "float16":
        model = to_float16(model)
    elif target.is_quantized:
        _check_calibration(job, target)
        work = file.parent / "int8.onnx"
        scheme, exact = target.quantization, target.sums == "exact"
        with _quantising(job.module, "onnxruntime"):
            quantized = quantize(model, work, job.calibration, job.reference, max_drop, scheme, exact)
        if quantized.complaint:
            return _Candidate(quantized.parity, quantized.complaint)
        model = onnx.load(work)
    drop_unused_domains(model)
    file_format.write_graph(model, file, target.chip)
    # An 8-bit graph was compared as .onnx; this is the file itself, which another tool may have written.
    parity = compare_file(job.reference, file, exact=target.sums == "exact")
    complaint = parity.complaint(target.precision)
    if job.crop is not None and not complaint:
        complaint = _put_preparation_in_front(model, target, file, job.crop)
    return _Candidate(parity, complaint, model, quantized)


@contextmanager
def _quantising(module: nn.Module, runtime: str) -> Iterator[None]:
    """Make one sentence of the errors of many kinds that quantisers raise for graphs they do not know."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{runtime} cannot quantise {type(module).__name__}: {first_line(error)}; choose a target in "
            "float32."
        ) from None


def _put_preparation_in_front(model: onnx.ModelProto, target: Target, file: Path, crop: CenterCrop) -> str:
    """Write a file again with resize and crop in it; returns half a sentence on what is wrong, or nothing.

    The preparation is compared with Pillow's, and the whole file with the network that was compared before.
    """
    file_format = find_format(target.format)
    channels = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    complaint = check_preparation(crop, channels, opset)
    if complaint:
        return complaint
    network = file_format.open(file)
    wanted = [network(pixels) for pixels in crops_to_try(crop, channels, opset)]
    put_in_front(model, crop, channels)
    file_format.write_graph(model, file, target.chip)
    return check_behind_preparation(file_format.open(file), wanted, crop, channels)


def _from_module(job: ExportJob, target: Target, file_format: Format, file: Path) -> _Candidate:
    """Write and compare a file of a format that is written from the torch module."""
    if target.is_quantized:
        _check_calibration(job, target)
        with _quantising(job.module, file_format.runtime):
            file_format.write_quantized(job.module, job.calibration, file, target.quantization)
    else:
        file_format.write_module(job.module, job.example[:1], file, target.precision)
    if file_format.not_run_here():
        return _Candidate(None, "")
    parity = compare_file(job.reference, file)
    quantized = None
    if target.is_quantized:
        layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in job.module.modules())
        quantized = Quantized(parity, _drop(job, parity), layers, (), "")
    return _Candidate(parity, parity.complaint(target.precision), quantized=quantized)


def _check_calibration(job: ExportJob, target: Target) -> None:
    """Refuse a quantised target where there are no images.

    Raises:
        UserError: there are none.
    """
    if not job.calibration:
        raise UserError(
            f"Target {target.name} is quantised, for which it needs images to calibrate with; give some."
        )


def _graph(job: ExportJob, target: Target) -> onnx.ModelProto:
    """The module's ONNX graph in the target's form."""
    # torch's exporter takes most of the time; most targets differ in what is done to its graph afterwards.
    key = target.batch, target.opset
    if key not in job.graphs:
        job.graphs[key] = traced_graph(job.module, job.example, [_output_name(job)], target)
    # A copy, since the next target starts from the graph as torch wrote it.
    model = onnx.ModelProto()
    model.CopyFrom(job.graphs[key])
    fit_to_target(model, target)
    return model


def _output_name(job: ExportJob) -> str:
    return "probabilities" if job.probabilities else "logits"


def _embed(facts: dict[str, Any], model: onnx.ModelProto, job: ExportJob, target: Target, file: Path) -> None:
    """Write the file again with the facts as metadata, and make sure that it computes the same."""
    file_format = find_format(target.format)
    # The metadata holds the accuracy, which is known only after the file was run, so it is written twice.
    images = next(iter(job.reference.batches()))[0]
    before = file_format.open(file)(images)
    set_metadata(model, {key: value for key, value in facts.items() if value is not None})
    file_format.write_graph(model, file, target.chip)
    after = file_format.open(file)(images)
    assert np.array_equal(after, before), "metadata changed what the file computes"


def _input_and_output(job: ExportJob, target: Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's description of what the file takes and gives."""
    # Images of different sizes cannot be given together.
    batch = "batch" if target.batch == "any" and job.crop is None else 1
    sides = list(job.example.shape[1:])
    if job.crop is not None:
        sides = ["height", "width", sides[-1]]
    image = {
        "name": "image",
        "dtype": "uint8" if job.example.dtype == np.uint8 else "float32",
        "layout": job.layout,
        "shape": [batch, *sides],
    }
    output = {
        "name": _output_name(job),
        "dtype": "float32",
        "layout": "NC",
        "shape": [batch, job.reference.output_NK.shape[1]],
    }
    return image, output


def _facts(job: ExportJob, target: Target, name: str, candidate: _Candidate) -> dict[str, Any]:
    """The manifest of one file, without its time, size and hash."""
    reference, model, parity = job.reference, candidate.model, candidate.parity
    image, output = _input_and_output(job, target)
    file_format = find_format(target.format)
    known = dict(job.facts)
    # What the predictor predicted belongs to the accuracies, where the reader compares them.
    predicted = known.pop("predicted_accuracy", None)
    accuracy = compared = None
    if parity is not None:
        # The sizes of the batches that were compared: one image, and several.
        compared = parity._asdict() | {"batches": [1, len(next(iter(reference.batches()))[0])]}
    if parity is not None and reference.labelled:
        accuracy = {
            "predicted": predicted,
            "torch": reference.accuracy,
            "file": parity.accuracy,
            "images": parity.images,
            "split": "val",
        }
    opset = None
    if model is not None:
        opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return {
        "file": name,
        "target": target.name,
        "precision": target.precision,
        "input": image,
        "output": output,
        **known,
        "accuracy": accuracy,
        "parity": compared,
        "not_run": file_format.not_run_here() or None,
        "quantization": _quantization(job, target, candidate),
        "opset": opset,
        "ir_version": None if model is None else model.ir_version,
        "versions": file_format.versions() | versions(),
    }


def _quantization(job: ExportJob, target: Target, candidate: _Candidate) -> dict[str, Any] | None:
    """What the manifest says of a quantised file."""
    parity, quantized = candidate.parity, candidate.quantized
    if quantized is None or parity is None:
        return None
    calibration_images = sum(len(batch) for batch in job.calibration)
    interval = paired_drop_interval(parity.lost, parity.gained, parity.images)
    return {
        "float_layers": list(quantized.float_layers),
        "layers": quantized.layers,
        "calibration_images": calibration_images,
        # Of this file: another tool may have compiled it from the .onnx file that was quantised.
        "drop": _drop(job, parity),
        "drop_interval": [round(100 * share, 2) for share in interval],
        "sums": target.sums,
        "note": gate_note(parity.images, calibration_images),
    }
