"""What onnxruntime makes of a graph, as far as it decides how long a run takes."""

from pathlib import Path

import onnx
import onnxruntime as ort

# An operator's kind, the shapes of its weights, and its attributes.
Step = tuple[str, tuple[tuple[int, ...], ...], tuple[tuple[str, object], ...]]


def optimised_steps(path: Path, side: int) -> list[Step]:
    """The operators that run for one image after all optimisations, in no order.

    Args:
        path: the model file.
        side: of its input, if that is open.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.add_free_dimension_override_by_name("batch", 1)
    options.add_free_dimension_override_by_name("side", side)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(path.with_suffix(".optimised")).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    steps = []
    for node in graph.node:
        weights = tuple(shapes[name] for name in node.input if name in shapes)
        attributes: list[tuple[str, object]] = []
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            # Says only how a 0 in the shape of a Reshape is read, and no shape here has one that counts.
            if attribute.name != "allowzero":
                attributes.append((attribute.name, tuple(value) if isinstance(value, list) else value))
        steps.append((node.op_type, weights, tuple(sorted(attributes))))
    return steps
