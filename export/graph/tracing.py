"""A torch module as an ONNX graph in the form of a target."""

from collections.abc import Sequence

import onnx
import torch
from torch import nn

from engine.errors import UserError
from engine.onnx_file import to_proto
from export.formats.format import Array
from export.graph.norms import fold_norms
from export.graph.operators import plain_operators
from export.targets.target import Target


def traced_graph(
    module: nn.Module, example: Array, outputs: Sequence[str], target: Target
) -> onnx.ModelProto:
    """The graph as torch writes it, with the batch axis and the opset of the target.

    Args:
        module: in eval mode.
        example: two inputs or more.
        outputs: names of the outputs.
        target: the kind of device.

    Raises:
        UserError: torch cannot export the module.
    """
    any_batch = target.batch == "any"
    inputs = torch.from_numpy(example if any_batch else example[:1])
    try:
        model = to_proto(module, inputs, any_batch=any_batch, outputs=outputs, opset=target.opset)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"torch cannot export {type(module).__name__} as ONNX: {reason}; its forward must not "
            "depend on the values of the image."
        ) from None
    # torch fixes an axis without an error where the code makes a Python number of its length.
    if any_batch and not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{type(module).__name__} uses the number of images as a Python number, so its file would take "
            f"{len(example)} at a time; keep x.shape[0] as it is in forward, without int() or a loop over "
            "images, or choose a target with batch: one, such as web."
        )
    return model


def fit_to_target(model: onnx.ModelProto, target: Target) -> None:
    """Bring a graph, in place, into the form of the target: norms folded, file version, operators."""
    fold_norms(model)
    # Runtimes refuse a file version that is newer than they are.
    model.ir_version = min(model.ir_version, target.ir)
    if target.activations == "relu6":
        plain_operators(model)
