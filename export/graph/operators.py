"""Changes to an ONNX graph that a target needs and that leave what it computes as it is."""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper


def plain_operators(model: onnx.ModelProto) -> None:
    """Write HardSwish and HardSigmoid as Add, Clip and Mul, and means over a map as pools, in place.

    hard_sigmoid(x) = alpha * clip(x + beta / alpha, 0, 1 / alpha), which is relu6(x + 3) / 6 with torch's
    alpha of 1/6 and beta of 1/2.
    """
    graph = model.graph
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}_gate"
            nodes += _hard_sigmoid(graph, node.input[0], gate, 1 / 6, 0.5)
            nodes.append(make("Mul", [node.input[0], gate], node.output[0]))
        elif node.op_type == "HardSigmoid":
            given = {attribute.name: attribute.f for attribute in node.attribute}
            alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)  # the defaults of ONNX
            nodes += _hard_sigmoid(graph, node.input[0], node.output[0], alpha, beta)
        elif _over_a_map(graph, node):
            nodes += _pool(graph, node)
        else:
            nodes.append(node)
    replace_nodes(model, nodes)


def pool_globally(model: onnx.ModelProto) -> None:
    """Write means over a map as GlobalAveragePool, which has an 8-bit kernel, in place."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += _pool(model.graph, node) if _over_a_map(model.graph, node) else [node]
    replace_nodes(model, nodes)


def replace_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """Give the graph these nodes, drop constants that none of them reads, infer shapes again, in place."""
    # Shapes in value_info belong to the old nodes.
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    # An unused constant would still be stored in the file.
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.CopyFrom(onnx.shape_inference.infer_shapes(model))


def _hard_sigmoid(graph: onnx.GraphProto, x: str, out: str, alpha: float, beta: float) -> list[NodeProto]:
    # A file holds alpha as float32, so its quotients are those of the rounded number.
    shift = _scalar(graph, beta / np.float32(alpha))
    scale = _scalar(graph, alpha)
    top = _scalar(graph, 1 / np.float32(alpha))
    return [
        make("Add", [x, shift], f"{out}_shifted"),
        make("Clip", [f"{out}_shifted", _scalar(graph, 0.0), top], f"{out}_clipped"),
        make("Mul", [f"{out}_clipped", scale], out),
    ]


def make(kind: str, inputs: list[str], output: str) -> NodeProto:
    """A node named after its output."""
    return helper.make_node(kind, inputs, [output], name=f"{kind.lower()}_{output}")


def _scalar(graph: onnx.GraphProto, value: float | np.floating[Any]) -> str:
    """Name of a scalar among the graph's constants, which hold every value once."""
    name = f"scalar_{np.float32(value):.9g}"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def _over_a_map(graph: onnx.GraphProto, node: NodeProto) -> bool:
    """Whether a node is a mean over axes 2 and 3 of (N, C, H, W)."""
    if node.op_type != "ReduceMean" or len(node.input) < 2:
        return False  # since opset 18 the axes are the second input; without them it is a mean over all axes
    axes = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == node.input[1]]
    return bool(axes) and sorted(axes[0].ravel().tolist()) in ([2, 3], [-2, -1])


def _pool(graph: onnx.GraphProto, node: NodeProto) -> list[NodeProto]:
    """A mean over a map as a pool.

    Where the mean drops its axes, a Reshape does that behind the pool: CoreML's MLProgram has no Flatten.
    """
    if all(a.i for a in node.attribute if a.name == "keepdims"):
        return [make("GlobalAveragePool", [node.input[0]], node.output[0])]
    # 0 takes over the batch axis, -1 is all that is left: the graph may have a free batch axis.
    pooled, shape = f"{node.output[0]}_pooled", "batch_and_rest"
    if all(tensor.name != shape for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), shape))
    return [
        make("GlobalAveragePool", [node.input[0]], pooled),
        make("Reshape", [pooled, shape], node.output[0]),
    ]


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove, in place, the operator sets that no node is of: a runtime without one might refuse the file."""
    used = {"", *(node.domain for node in model.graph.node)}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)
