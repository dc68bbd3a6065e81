"""A torch module as an ONNX file: what python -m export.onnx verifies and what latency is measured with."""

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ofa.subnet import ConvBN

OPSET, IR_VERSION = 18, 10


def to_onnx(module: nn.Module, example_NCHW: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """`module` (eval mode) as one ONNX file with a dynamic batch axis and `metadata` as string properties."""
    folded = fold_batch_norm(module)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        folded,
        (example_NCHW.contiguous(),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    _strip(model)
    onnx.helper.set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A contiguous copy of `module` whose convolutions carry their BatchNorm's scale and shift."""
    folded = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for block in folded.modules():
        if isinstance(block, ConvBN):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()  # type: ignore[assignment]
    return folded


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter says about the source: stack traces and paths of this machine."""
    model.doc_string = ""
    for holder in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.functions):
        holder.doc_string = ""
        del holder.metadata_props[:]
