"""How much of a file an execution provider of phones might take: an estimate.

The estimate comes from onnxruntime's mobile usability checker. The checker knows which operators a provider
has. It knows neither the limits on each nor the device: only a run there is a measurement. A provider pays
for every partition with copies to and from it, so few large ones are good.
"""

from typing import NamedTuple

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker

# The lists of operators of both CoreML formats; "coreml-old" is NeuralNetwork, which MLProgram replaced.
COREML = {
    "coreml": "coreml_supported_mlprogram_ops.md",
    "coreml-old": "coreml_supported_neuralnetwork_ops.md",
}
PROVIDERS = ("nnapi", *COREML)


class Estimate(NamedTuple):
    """What one provider might take of a graph.

    Args:
        partitions: parts of the graph that it would be given.
        share: of the nodes that are in them.
        left: operators that stay on the CPU.
        verdict: whether the checker recommends the provider: yes, maybe or no.
    """

    partitions: int
    share: float
    left: tuple[str, ...]
    verdict: str


def estimate_partitions(model: onnx.ModelProto, shape: list[int]) -> dict[str, Estimate]:
    """The estimate of each provider. The model is changed: its input gets the numbers of `shape`."""
    # The checker refuses nodes whose shapes have free axes.
    for axis, side in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = side
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    found = {"nnapi": _estimate(checker.check_nnapi_partitions(model, True))}
    for name, table in COREML.items():
        found[name] = _estimate(checker.check_coreml_partitions(model, False, table))
    return found


def _estimate(info: checker.PartitioningInfo) -> Estimate:
    """What the checker found, as an estimate."""
    left = sorted(name.removeprefix("ai.onnx:") for name in info.unsupported_ops)
    share = info.num_supported_nodes / max(1, info.num_nodes)
    return Estimate(info.num_partitions, share, tuple(left), info.suitability().name.lower())
