"""How much of a file an execution provider of phones might take: an estimate by onnxruntime's mobile
usability checker.

The checker knows which operators a provider has, not the limits on each, nor the device; only a run there is
a measurement. A provider pays for every partition with copies to and from it, so few that are large are good.
"""

from pathlib import Path
from typing import NamedTuple

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker

COREML = {
    "coreml": "coreml_supported_mlprogram_ops.md",
    "coreml-old": "coreml_supported_neuralnetwork_ops.md",
}
PROVIDERS = ("nnapi", *COREML)


class Estimate(NamedTuple):
    """Partitions, the share of the nodes in them, and operators that stay on the CPU. verdict: the checker's:
    yes, maybe or no."""

    partitions: int
    share: float
    left: tuple[str, ...]
    verdict: str


def estimate(path: Path, shape: list[int]) -> dict[str, Estimate]:
    """By provider, for an input of `shape`; nothing for .ort files, which the checker cannot read."""
    if path.suffix != ".onnx":
        return {}
    model = onnx.load(path)
    for axis, side in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = side
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    found = {"nnapi": checker.check_nnapi_partitions(model, True)}
    found |= {name: checker.check_coreml_partitions(model, False, table) for name, table in COREML.items()}
    return {name: _read(info) for name, info in found.items()}


def _read(info: checker.PartitioningInfo) -> Estimate:
    left = tuple(sorted(name.removeprefix("ai.onnx:") for name in info.unsupported_ops))
    return Estimate(
        info.num_partitions,
        info.num_supported_nodes / max(1, info.num_nodes),
        left,
        info.suitability().name.lower(),
    )
