"""Write a subnet as the backbone of a detector or segmenter: the maps at its strides instead of logits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from engine.onnx_file import set_metadata
from engine.run import digest, versions, write_json
from engine.runs.writing import publish, work_folder
from export.bake import Bake, PixelClassifier
from export.formats.format import Array
from export.formats.onnx import open_onnxruntime
from export.graph.checks import check_model
from export.graph.tracing import fit_to_target, traced_graph
from export.job import facts_of_run
from export.manifest import manifest_path
from export.source import ExportSource, NamedNetwork
from export.targets.target import Target
from export.verify import TOLERANCE, check_module, milliseconds
from ofa.subnet import FEATURE_STRIDES, Subnet

FOLDER = "features"  # in export/: a bundle is of classifiers, and takes all files of that folder


class FeatureMaps(nn.Module):
    """The maps of a subnet as a module with one output for each stride."""

    def __init__(self, subnet: Subnet):
        super().__init__()
        self.subnet = subnet
        self.train(subnet.training)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) to maps (N, channels, H / stride, W / stride), the largest first."""
        return tuple(self.subnet.features(x).values())


class WrittenFeatures(NamedTuple):
    """What became of one file.

    Args:
        path: the file.
        channels: of each map, by its stride.
        relative_error: of the worst map: its largest difference from torch's, relative to its largest number.
        milliseconds: of one image; None if the file was not kept.
        complaint: half a sentence on what is wrong; empty if the file was kept.
    """

    path: Path
    channels: dict[int, int]
    relative_error: float
    milliseconds: float | None
    complaint: str


def check_targets(targets: list[Target]) -> None:
    """Refuse targets whose files would need a classifier.

    Raises:
        UserError: one is not ONNX in float32.
    """
    for target in targets:
        if (target.format, target.precision) != ("onnx", "float32"):
            raise UserError(
                f"Features are written as ONNX in float32, and target {target.name} is {target.precision} as "
                f"{target.format}: what it may lose is told by top-1, which maps do not have; choose cpu or "
                "web, for example."
            )


def write_features(
    source: ExportSource,
    network: NamedNetwork,
    targets: list[Target],
    bake: Bake | None,
    images: int | None,
    size: int | None,
) -> list[WrittenFeatures]:
    """Write export/features/NAME.onnx with its manifest for each target, where it equals torch.

    Args:
        source: the run.
        network: one of its networks.
        targets: the kinds of device; see `check_targets`.
        bake: normalisation to put into the graph, if any.
        images: how many validation images, from the first on, the maps are compared on; None: all.
        size: side of the input in pixels; None: that of the architecture.

    Raises:
        UserError: the network has no such maps, or none of them fits the size.
    """
    built = network.build()
    subnet = built.module
    if not isinstance(subnet, Subnet):
        raise UserError(
            f"Run '{source.run}' is a retrained genotype, which has no maps at strides of its own; leave out "
            "--features."
        )
    if not subnet.feature_channels:
        strides = ", ".join(map(str, FEATURE_STRIDES))
        raise UserError(
            f"Network '{network.name}' has no map at a stride of {strides}; leave out --features."
        )
    built = built._replace(size=size or built.size)
    last = max(subnet.feature_channels)
    if size and size % last:
        raise UserError(
            f"Network '{network.name}' gives maps of whole pixels only, and a side of {size} pixels is no "
            f"multiple of its largest stride {last}; give another --size."
        )
    maps = FeatureMaps(subnet)
    module = PixelClassifier(maps, bake) if bake else maps
    check_module(module)

    def batches() -> Iterator[Array]:
        for x, _ in source.images("val", built.size, images):
            yield (bake.pixels(x) if bake else x).numpy()

    image = next(batches())[:1]
    facts = facts_of_run(source, network.name, built, bake) | {
        "classes": None,
        "macs": count_macs(maps, torch.zeros(1, source.data.channels, built.size, built.size)),
        "params": count_parameters(subnet.stem) + count_parameters(subnet.blocks),
        "layout": bake.layout if bake else "NCHW",
    }
    work = _Work(module, subnet, np.concatenate([image, image]), batches, facts)
    folder = source.run / "export" / FOLDER
    return [_write(work, target, folder / target.file_name(network.name)) for target in targets]


class _Work(NamedTuple):
    """A network whose files are to be written.

    Args:
        module: takes the inputs of the file to maps.
        subnet: the network in it.
        example: two inputs (2, ...).
        batches: gives the inputs to compare on, the same at each call.
        facts: what the manifest says for every target; `layout` is of the input.
    """

    module: nn.Module
    subnet: Subnet
    example: Array
    batches: Callable[[], Iterator[Array]]
    facts: dict[str, Any]


def _write(work: _Work, target: Target, path: Path) -> WrittenFeatures:
    """Write one file under a temporary name, compare it, and move it to its place if it equals torch."""
    channels = work.subnet.feature_channels
    names = [f"stride{stride}" for stride in channels]
    model = traced_graph(work.module, work.example, names, target)
    fit_to_target(model, target)
    complaint = check_model(model, count_parameters(work.subnet))
    error, took = float("nan"), None
    path.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(path.parent) as folder:
        file = folder / path.name
        if not complaint:
            onnx.save(model, file)
            errors, compared = _compare(work, file, names)
            error = max(errors)
            # Not `error > TOLERANCE`, which NaN would pass.
            if not error <= TOLERANCE:
                complaint = f"differs from torch by {error:.1e} (limit {TOLERANCE:g})"
        if not complaint:
            took = milliseconds(file, work.example)
            parity = {"relative_error": dict(zip(names, errors, strict=True)), "images": compared}
            facts = _facts(work, target, model, path.name) | {"parity": parity}
            # The metadata is known only now. It changes nothing that is computed. No time is in it: then
            # exporting twice gives the same bytes.
            set_metadata(model, {key: value for key, value in facts.items() if value is not None})
            onnx.save(model, file)
            facts["milliseconds"] = round(took, 4)
            facts |= {"bytes": file.stat().st_size, "sha256": digest(file)}
            publish(file, path)
            write_json(manifest_path(path), facts)
        else:
            # Nobody should take an older file for the one that failed.
            path.unlink(missing_ok=True)
            manifest_path(path).unlink(missing_ok=True)
    return WrittenFeatures(path, channels, error, took, complaint)


@torch.no_grad()
def _compare(work: _Work, file: Path, names: list[str]) -> tuple[list[float], int]:
    """Compare each map with torch's: the first image alone, then all of them in batches.

    Returns:
        The largest difference of each map, relative to its largest number, and how many images there were.
    """
    session = open_onnxruntime(file)
    differences, largest, count = np.zeros(len(names)), np.zeros(len(names)), 0
    first = next(work.batches())[:1]
    for x in (first, *work.batches()):
        wanted = [map_NCHW.numpy() for map_NCHW in work.module(torch.from_numpy(x))]
        got = _run(session, names, x)
        for i, (ours, theirs) in enumerate(zip(wanted, got, strict=True)):
            # np.maximum hands NaN on, which the caller then sees.
            differences[i] = np.maximum(differences[i], np.abs(theirs - ours).max())
            largest[i] = np.maximum(largest[i], np.abs(ours).max())
        count += len(x)
    # A map of zeros has no scale: any difference from it counts as it is.
    return (differences / np.where(largest > 0, largest, 1)).tolist(), count - len(first)


def _run(session: ort.InferenceSession, names: list[str], x: Array) -> list[Array]:
    """The maps of inputs x; one image at a time if the file has no free batch axis."""
    (image,) = session.get_inputs()
    parts = [x] if isinstance(image.shape[0], str) else [x[i : i + 1] for i in range(len(x))]
    found = [session.run(names, {image.name: part}) for part in parts]
    return [np.concatenate(maps) for maps in zip(*found, strict=True)]


def _facts(work: _Work, target: Target, model: onnx.ModelProto, name: str) -> dict[str, Any]:
    """The manifest of one file, without what is known only after it was run."""
    batch = "batch" if target.batch == "any" else 1
    facts = dict(work.facts)
    image = {
        "name": "image",
        "dtype": "uint8" if work.example.dtype == np.uint8 else "float32",
        "layout": facts.pop("layout"),
        "shape": [batch, *work.example.shape[1:]],
    }
    features = []
    # The sides stand in the graph, whichever way an odd side was halved.
    outputs = zip(work.subnet.feature_channels.items(), model.graph.output, strict=True)
    for (stride, channels), output in outputs:
        sides = [axis.dim_value for axis in output.type.tensor_type.shape.dim[2:]]
        tensor = {"name": output.name, "dtype": "float32", "layout": "NCHW"}
        tensor["shape"] = [batch, channels, *sides]
        features.append(tensor | {"stride": stride, "channels": channels})
    return {
        "file": name,
        "target": target.name,
        "precision": "float32",
        "input": image,
        # The last map stands for the output where a program knows one output only.
        "output": {key: value for key, value in features[-1].items() if key not in ("stride", "channels")},
        "features": features,
        **facts,
        "accuracy": None,
        "quantization": None,
        "opset": target.opset,
        "ir_version": model.ir_version,
        "versions": {"onnxruntime": ort.__version__} | versions(),
    }
