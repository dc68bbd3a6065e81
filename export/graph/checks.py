"""What must hold of a graph before anybody compares what it computes."""

import re

import numpy as np
import onnx

from export.formats.onnx import first_line

# A graph may store a few numbers that are no parameters: constants of shapes, limits and scales.
MORE_NUMBERS, MORE_SHARE = 1000, 1.05


def check_model(model: onnx.ModelProto, parameters: int | None) -> str:
    """Check a graph; returns half a sentence on what is wrong, or an empty text.

    A graph must be valid ONNX, hold no BatchNorm and no layer in training mode, name no path of this machine,
    and store no more than the network's own weights.

    Args:
        model: the graph.
        parameters: how many numbers the network has in its parameters and buffers; None if a graph may store
            more, since the network computes tables in its forward, which become constants.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"is not valid ONNX: {first_line(error)}"
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    if parameters is not None and stored > parameters * MORE_SHARE + MORE_NUMBERS:
        return f"stores {stored} numbers, but the network has only {parameters} parameters"
    for node in model.graph.node:
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            return "has layers in training mode"
        if node.op_type == "BatchNormalization":
            return "still has BatchNormalization nodes; they should be folded"
    if names_this_machine(model):
        return "names files of this machine"
    return ""


def names_this_machine(model: onnx.ModelProto) -> bool:
    """Whether something beside the weights looks like a source file or an absolute path."""
    without_weights = onnx.ModelProto()
    without_weights.CopyFrom(model)
    # Weights are arbitrary bytes, which may look like anything.
    del without_weights.graph.initializer[:]
    path = rb'\.py\b|File "|(?<![\w.:/])/(?:home|root|tmp|usr|Users|var|opt|mnt)/'
    return re.search(path, without_weights.SerializeToString()) is not None
