"""Changes to an ONNX graph that a target needs and that leave what it computes as it is."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Array = NDArray[Any]

OPERATORS = ".required_operators.config"  # beside an .ort file


def plain_operators(model: onnx.ModelProto) -> None:
    """HardSwish and HardSigmoid as Add, Clip and Mul, and means over a map as GlobalAveragePool, in place.

    hard_sigmoid(x) = alpha * clip(x + beta / alpha, 0, 1 / alpha): relu6(x + 3) / 6 with torch's alpha of 1/6
    and beta of 1/2.
    """
    graph, nodes = model.graph, []
    for node in graph.node:
        match node.op_type:
            case "HardSwish":
                gate = f"{node.output[0]}_gate"
                nodes += [
                    *_hard_sigmoid(graph, node.input[0], gate, 1 / 6, 0.5),
                    make("Mul", [node.input[0], gate], node.output[0]),
                ]
            case "HardSigmoid":
                values = {"alpha": 0.2, "beta": 0.5} | {a.name: a.f for a in node.attribute}
                nodes += _hard_sigmoid(graph, node.input[0], node.output[0], values["alpha"], values["beta"])
            case "ReduceMean" if _over_a_map(graph, node):
                nodes += _pool(graph, node)
            case _:
                nodes.append(node)
    replace_nodes(model, nodes)


def pool_globally(model: onnx.ModelProto) -> None:
    """Means over a map as GlobalAveragePool, which has an 8-bit kernel, in place."""
    nodes = [
        n
        for node in model.graph.node
        for n in (_pool(model.graph, node) if _over_a_map(model.graph, node) else [node])
    ]
    replace_nodes(model, nodes)


def replace_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """Give the graph these nodes, drop constants that none of them reads, and infer shapes anew, in place."""
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.CopyFrom(onnx.shape_inference.infer_shapes(model))


def _hard_sigmoid(graph: onnx.GraphProto, x: str, out: str, alpha: float, beta: float) -> list[NodeProto]:
    shift, scale, top = (
        _constant(graph, value) for value in (beta / np.float32(alpha), alpha, 1 / np.float32(alpha))
    )
    return [
        make("Add", [x, shift], f"{out}_shifted"),
        make("Clip", [f"{out}_shifted", _constant(graph, 0.0), top], f"{out}_clipped"),
        make("Mul", [f"{out}_clipped", scale], out),
    ]


def make(kind: str, inputs: list[str], output: str) -> NodeProto:
    """A node named after its output."""
    return helper.make_node(kind, inputs, [output], name=f"{kind.lower()}_{output}")


def _constant(graph: onnx.GraphProto, value: float | np.floating[Any]) -> str:
    """Name of a scalar among the graph's constants, there once for each value."""
    name = f"scalar_{np.float32(value):.9g}"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def _over_a_map(graph: onnx.GraphProto, node: NodeProto) -> bool:
    """Whether it is a mean over axes 2 and 3 of (N, C, H, W)."""
    if node.op_type != "ReduceMean" or len(node.input) < 2:
        return False
    axes = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == node.input[1]]
    return bool(axes) and sorted(axes[0].ravel().tolist()) in ([2, 3], [-2, -1])


def _pool(graph: onnx.GraphProto, node: NodeProto) -> list[NodeProto]:
    """The mean as a pool; Reshape, not Flatten, takes off the axes, since CoreML's MLProgram lacks that."""
    if all(a.i for a in node.attribute if a.name == "keepdims"):
        return [make("GlobalAveragePool", [node.input[0]], node.output[0])]
    pooled, shape = f"{node.output[0]}_pooled", "batch_and_rest"
    if all(tensor.name != shape for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), shape))
    return [
        make("GlobalAveragePool", [node.input[0]], pooled),
        make("Reshape", [pooled, shape], node.output[0]),
    ]


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def write_ort(onnx_path: Path, path: Path) -> None:
    """`onnx_path` as an .ort file for ARM at `path`, and the list of its operators as
    `path`.required_operators.config."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with silent():
        convert_onnx_models_to_ort(onnx_path, path.parent, [OptimizationStyle.Fixed], target_platform="arm")
    written, config = path.parent / f"{onnx_path.stem}.ort", path.parent / f"{onnx_path.stem}{OPERATORS}"
    lines = [
        line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]  # they name folders of this machine
    config.unlink()
    path.with_suffix(OPERATORS).write_text(
        "\n".join([f"# Generated from {path.name}", *lines, ""]), encoding="utf-8"
    )
    written.replace(path)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """onnxruntime's tools print, log and warn about their own steps, and name files of this machine: nothing
    a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def names_this_machine(model: onnx.ModelProto) -> bool:
    """Whether something beside the weights looks like a source file or an absolute path."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.initializer[:]
    return (
        re.search(
            rb'\.py\b|File "|(?<![\w.:/])/(?:home|root|tmp|usr|Users|var|opt|mnt)/', copy.SerializeToString()
        )
        is not None
    )
