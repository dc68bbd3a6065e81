"""A layer as an ONNX graph that is written from its trace.

The graph is the one that torch's exporter writes of the same module (a contract test compares both for every
kind of block), in a hundredth of the time: a kit has hundreds of layers. It is for timing only, since its
weights have shapes and no values: the caller says where the numbers are.
"""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from engine.blocks.plain import ChannelShuffle, SamePad
from engine.blocks.sizes import same_padding
from engine.onnx_file import IR_VERSION, OPSET

# Operators of ONNX for activations, which stand in a trace as layers or as functions. Swish is two operators.
SWISH = "Swish"
ACTIVATIONS: dict[object, str] = {
    nn.ReLU: "Relu",
    nn.functional.relu: "Relu",
    nn.Hardswish: "HardSwish",
    nn.SiLU: SWISH,
    nn.functional.silu: SWISH,
    torch.sigmoid: "Sigmoid",
    nn.functional.hardsigmoid: "HardSigmoid",
}


def layer_graph(module: nn.Module, channels: int, size: int) -> onnx.ModelProto:
    """An ONNX model of a layer with open batch and side, whose weights have shapes and no values.

    Args:
        module: the layer; BatchNorm counts as in eval mode, where it is part of the convolution before it.
        channels, size: of its input map; convolutions that pad as TensorFlow does pad for this size.
    """
    return _GraphWriter(module, size).write(_Tracer().trace(module), channels)


class _Tracer(fx.Tracer):
    """Keeps as one step what depends on the size of a map, which a trace does not know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SamePad | ChannelShuffle) or super().is_leaf_module(m, module_qualified_name)


class _GraphWriter:
    def __init__(self, module: nn.Module, size: int) -> None:
        self._size = size
        self._modules = dict(module.named_modules())
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        # The name that each step of the trace has in the graph. Where it only pads, the name is that of what
        # it pads, and the convolution that follows adds the zeros.
        self._names: dict[Any, str] = {}
        self._pads: dict[Any, SamePad] = {}

    def write(self, trace: fx.Graph, channels: int) -> onnx.ModelProto:
        first, *steps, last = trace.nodes
        self._names[first] = first.name
        for step in steps:
            self._names[step] = self._add(step)
        x = helper.make_tensor_value_info(first.name, TensorProto.FLOAT, ["batch", channels, "side", "side"])
        # Only a network's last layer ends in a vector; all others in a map, whose sides the runtime finds.
        shape = (
            ["batch", "classes"] if self._nodes[-1].op_type == "Gemm" else ["batch", "width", "out0", "out1"]
        )
        y = helper.make_tensor_value_info(self._names[last.args[0]], TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "layer", [x], [y], self._constants)
        # The same versions as exported files have, which runtimes in the field can read.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _add(self, step: fx.Node) -> str:
        """Write one step of a trace.

        Returns:
            The name of its result.
        """
        if step.op == "call_module":
            return self._add_layer(step, self._modules[str(step.target)])
        inputs = [self._names[arg] for arg in step.args if isinstance(arg, fx.Node)]
        match step.target:
            case "mean":
                axes = self._constant(step.name + ".axes", np.array(step.args[1], np.int64))
                keep = int(bool(step.kwargs.get("keepdim")))
                return self._operator("ReduceMean", [*inputs, axes], step.name, keepdims=keep)
            case "flatten":
                shape = self._constant(step.name + ".shape", np.array([0, -1], np.int64))
                return self._operator("Reshape", [*inputs, shape], step.name)
        # Sums and products have the names of Python's operators.
        functions = ACTIVATIONS | {"add": "Add", "mul": "Mul"}
        name = getattr(step.target, "__name__", "")
        return self._activation(
            functions[step.target if step.target in functions else name], inputs, step.name
        )

    def _add_layer(self, step: fx.Node, layer: nn.Module) -> str:
        before, name = step.args[0], step.name
        x = self._names[before]
        match layer:
            case nn.Identity():
                return x
            case nn.BatchNorm2d():
                self._fold(layer, x)
                return x
            case SamePad():
                self._pads[step] = layer
                return x
            case nn.Conv2d():
                pads = _both_ends(layer.padding)
                if before in self._pads:
                    pad = self._pads[before]
                    start, end = same_padding(self._size, pad.kernel, pad.stride)
                    pads = [start, start, end, end]
                return self._operator(
                    "Conv",
                    [x, *self._weights(layer, name)],
                    name,
                    dilations=list(layer.dilation),
                    group=layer.groups,
                    kernel_shape=list(layer.kernel_size),
                    pads=pads,
                    strides=list(layer.stride),
                )
            case ChannelShuffle():
                return self._shuffle(layer, x, name)
            case nn.Linear():
                return self._operator("Gemm", [x, *self._weights(layer, name)], name, transB=1)
            case nn.MaxPool2d() | nn.AvgPool2d():
                return self._pool(layer, x, name)
            case nn.ReLU6():
                ends = [self._constant(f"{name}.{end}", np.array(end, np.float32)) for end in (0, 6)]
                return self._operator("Clip", [x, *ends], name)
        return self._activation(ACTIVATIONS[type(layer)], [x], name)

    def _fold(self, norm: nn.BatchNorm2d, x: str) -> None:
        """Make BatchNorm part of the convolution that computes `x`: its scale is in the weights already."""
        convolution = self._nodes[-1]
        assert convolution.op_type == "Conv" and convolution.output[0] == x and len(convolution.input) == 2
        bias = TensorProto(name=x + ".bias", data_type=TensorProto.FLOAT, dims=[norm.num_features])
        self._constants.append(bias)
        convolution.input.append(bias.name)

    def _shuffle(self, layer: ChannelShuffle, x: str, name: str) -> str:
        # 0 copies an axis of the input: maps are square, so that its last axis may stand for the one before.
        shape = self._constant(name + ".groups", np.array([0, *layer.sizes, 0, -1], np.int64))
        whole = self._operator("Shape", [x], name + ".shape")
        apart = self._operator("Reshape", [x, shape], name + ".apart")
        turned = self._operator("Transpose", [apart], name + ".turned", perm=[0, 2, 1, 3, 4])
        return self._operator("Reshape", [turned, whole], name)

    def _activation(self, operator: str, inputs: list[str], name: str) -> str:
        if operator == SWISH:
            inputs = [*inputs, self._operator("Sigmoid", inputs, name + ".sigmoid")]
            operator = "Mul"
        # torch's hard sigmoid has a slope of 1/6, and that of ONNX is 0.2 unless the graph says otherwise.
        attributes = {"alpha": 1 / 6, "beta": 0.5} if operator == "HardSigmoid" else {}
        return self._operator(operator, inputs, name, **attributes)

    def _pool(self, layer: nn.MaxPool2d | nn.AvgPool2d, x: str, name: str) -> str:
        attributes: dict[str, Any] = {
            "kernel_shape": _pair(layer.kernel_size),
            "pads": _both_ends(layer.padding),
            "strides": _pair(layer.stride),
            "ceil_mode": int(layer.ceil_mode),
        }
        if isinstance(layer, nn.MaxPool2d):
            return self._operator("MaxPool", [x], name, dilations=_pair(layer.dilation), **attributes)
        counts_pad = int(layer.count_include_pad)
        return self._operator("AveragePool", [x], name, count_include_pad=counts_pad, **attributes)

    def _operator(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _weights(self, layer: nn.Conv2d | nn.Linear, name: str) -> list[str]:
        names = []
        for kind, weight in layer.named_parameters():
            tensor = TensorProto(name=f"{name}.{kind}", data_type=TensorProto.FLOAT, dims=weight.shape)
            self._constants.append(tensor)
            names.append(tensor.name)
        return names

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
        return name


def _pair(value: int | tuple[int, int]) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value, value]


def _both_ends(padding: int | str | tuple[int, ...]) -> list[int]:
    """Padding of height and width as ONNX writes it: both starts, then both ends."""
    assert not isinstance(padding, str)
    height, width = padding if isinstance(padding, tuple) else (padding, padding)
    return [height, width, height, width]
