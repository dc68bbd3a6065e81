"""A torch module as an ONNX file: what python -m export.onnx verifies and what latency is measured with."""

import copy
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

OPSET, IR_VERSION = 18, 10


def to_onnx(module: nn.Module, example_NCHW: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """`module` (eval mode) as one ONNX file with a dynamic batch axis and `metadata` as string properties."""
    model = to_proto(module, example_NCHW)
    set_metadata(model, metadata)
    onnx.save(model, path)


def to_proto(
    module: nn.Module,
    example: torch.Tensor,
    *,
    any_batch: bool = True,
    output: str = "logits",
    opset: int = OPSET,
) -> onnx.ModelProto:
    """`module` (eval mode) as an ONNX model: BatchNorm folded, nothing in it about this machine.

    Args:
        module: what to export; it is not changed.
        example: an input, such as (N, C, H, W); with `any_batch` of two or more images, since one would be
            taken for the only size.
        any_batch: whether the first axis is free; else it is that of `example`.
        output: name of the output; the input is `image`.
        opset: at least 18: below that torch writes 18 without an error.
    """
    free = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    return traced(fold_batch_norm(module), (example.contiguous(),), ["image"], [output], free, opset)


def traced(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    free: Any,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """`module` (eval mode) as it is. free: which axes of the inputs may change, as torch.export's
    `dynamic_shapes`."""
    assert opset >= OPSET, f"the exporter does not write opset {opset}"
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=free,
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset], model.opset_import
    model.ir_version = min(model.ir_version, IR_VERSION)
    _strip(model)
    return model


def set_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """`metadata` as string properties of the model: what is not a string, as JSON."""
    onnx.helper.set_model_props(
        model,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()},
    )


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A contiguous copy of `module` whose convolutions carry the BatchNorm that follows them in the same
    nn.Sequential.

    Only there is it sure that it follows, in any network; what this leaves, torch's exporter folds in the
    graph, which takes longer.
    """
    folded = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    uses = Counter(id(m) for _, m in folded.named_modules(remove_duplicate=False))
    for parent in folded.modules():
        if type(parent).forward is not nn.Sequential.forward:
            continue
        for first, second in itertools.pairwise(parent._modules):
            conv, norm = parent._modules[first], parent._modules[second]
            alone = uses[id(conv)] == uses[id(norm)] == 1
            if (
                alone
                and type(conv) is nn.Conv2d
                and type(norm) is nn.BatchNorm2d
                and norm.running_mean is not None
            ):
                parent._modules[first], parent._modules[second] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs advice about its own making, none of which a user can act on."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter says about the source: stack traces and paths of this machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    for holder in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
    ):
        holder.doc_string = ""
        del holder.metadata_props[:]
