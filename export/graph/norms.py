"""BatchNorms that torch's exporter leaves in a graph, because no single convolution precedes them."""

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from export.formats.format import Array
from export.graph.operators import make, replace_nodes


def fold_norms(model: onnx.ModelProto) -> None:
    """Remove every BatchNormalization from the graph, in place.

    One behind a concatenation of convolutions (the factorized reduction of DARTS) is folded into those. Any
    other becomes a multiplication and an addition, which every runtime has.
    """
    graph = model.graph
    # Most graphs have none, and inferring shapes again would be for nothing.
    if all(node.op_type != "BatchNormalization" for node in graph.node):
        return
    values = {tensor.name: tensor for tensor in graph.initializer}
    ranks = _ranks(model)
    makers = {node.output[0]: node for node in graph.node}
    uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[NodeProto] = []
    for node in graph.node:
        # A norm whose numbers are no constants stays; `check_model` then refuses the file.
        if node.op_type != "BatchNormalization" or not set(node.input[1:]) <= set(values):
            nodes.append(node)
            continue
        scale, shift = _affine(node, values)
        joined = makers.get(node.input[0])
        convs = _joined_convs(joined, makers, uses)
        if joined is None or not convs:
            nodes += _arithmetic(graph, node, scale, shift, ranks.get(node.input[0], 4))
            continue
        # Each convolution makes some of the channels, in the order of the concatenation.
        for conv in convs:
            channels = values[conv.input[1]].dims[0]
            _scale_conv(graph, values, conv, scale[:channels], shift[:channels])
            scale, shift = scale[channels:], shift[channels:]
        joined.output[0] = node.output[0]  # the readers of the norm now read the concatenation
    replace_nodes(model, nodes)


def _affine(
    node: NodeProto, values: dict[str, TensorProto]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (scale, shift) of each channel by which a BatchNormalization in eval mode can be replaced."""
    # In float64, so that folding does not lose more than the float32 of the result.
    tensors = [numpy_helper.to_array(values[name]).astype(np.float64) for name in node.input[1:]]
    gamma, beta, mean, var = tensors
    epsilon = 1e-5  # the default of ONNX
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            epsilon = attribute.f
    scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - mean * scale


def _joined_convs(
    joined: NodeProto | None, makers: dict[str, NodeProto], uses: "Counter[str]"
) -> list[NodeProto]:
    """The convolutions that a node concatenates along the channels; none if it joins anything else too.

    Their outputs must have no other reader, since folding changes them.
    """
    if joined is None or joined.op_type != "Concat":
        return []
    # The one attribute of Concat is its axis; 1 are the channels.
    if uses[joined.output[0]] != 1 or joined.attribute[0].i != 1:
        return []
    convs = []
    for name in joined.input:
        conv = makers.get(name)
        if conv is None or conv.op_type != "Conv":
            return []
        if uses[conv.output[0]] != 1 or uses[conv.input[1]] != 1:
            return []
        convs.append(conv)
    return convs


def _scale_conv(
    graph: onnx.GraphProto, values: dict[str, TensorProto], conv: NodeProto, scale: Array, shift: Array
) -> None:
    """Multiply a convolution's output by `scale` and add `shift`."""
    weight = numpy_helper.to_array(values[conv.input[1]])
    bias = numpy_helper.to_array(values[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(weight))
    scaled = _constant(graph, f"{conv.input[1]}_folded", weight * scale[:, None, None, None])
    conv.input[:] = [conv.input[0], scaled, _constant(graph, f"{conv.output[0]}_bias", bias * scale + shift)]


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """How many axes each value of the graph has, as far as it is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = [value for value in (*graph.value_info, *graph.input) if value.type.tensor_type.HasField("shape")]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known}


def _arithmetic(
    graph: onnx.GraphProto, node: NodeProto, scale: Array, shift: Array, rank: int
) -> list[NodeProto]:
    """The norm of values (N, C, ...) with `rank` axes as a multiplication and an addition."""
    # One number for each channel. Values (N, C) have no axes behind it: with more axes here, they would get
    # them.
    out, shape = node.output[0], (-1, *[1] * (rank - 2))
    # Not "_scale": so onnxruntime's quantiser calls a number of its own.
    factor = _constant(graph, f"{out}_norm_factor", scale.reshape(shape))
    term = _constant(graph, f"{out}_norm_term", shift.reshape(shape))
    return [make("Mul", [node.input[0], factor], f"{out}_scaled"), make("Add", [f"{out}_scaled", term], out)]


def _constant(graph: onnx.GraphProto, name: str, value: Array) -> str:
    """Name of a new constant in float32."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return name
