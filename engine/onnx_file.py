"""Write a torch module as an ONNX file, which `export.onnx` verifies and latency is measured with."""

import copy
import itertools
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# torch's exporter writes opset 18 or newer; onnxruntime 1.18 and newer read IR 10.
OPSET, IR_VERSION = 18, 10


def write_onnx(module: nn.Module, example_NCHW: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """Write `module` as one ONNX file with a free batch axis.

    Args:
        module: in eval mode; it is not changed.
        example_NCHW: two images or more.
        path: the file.
        metadata: facts for the file, which become its string properties.
    """
    model = to_proto(module, example_NCHW)
    set_metadata(model, metadata)
    onnx.save(model, path)


def to_proto(
    module: nn.Module,
    example: torch.Tensor,
    *,
    any_batch: bool = True,
    outputs: Sequence[str] = ("logits",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """`module` as an ONNX model, with BatchNorm folded and nothing in it about this machine.

    Args:
        module: in eval mode; it is not changed.
        example: an input, such as (N, C, H, W). With `any_batch` it holds two images or more, since torch
            takes an axis of length one for a constant.
        any_batch: whether the first axis is free; else it is as long as that of `example`.
        outputs: names of the outputs; the input is called `image`.
        opset: 18 or more; below that torch writes 18 and says nothing.
    """
    free = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    # The copy that `fold_batch_norm` makes is contiguous too: subnets and their images are channels_last.
    return traced(fold_batch_norm(module), (example.contiguous(),), ["image"], list(outputs), free, opset)


def traced(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    free: Any,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """`module` as an ONNX model, as torch's exporter writes it.

    Args:
        module: in eval mode.
        example: its inputs.
        inputs, outputs: their names.
        free: which axes of the inputs may change, as torch.export's `dynamic_shapes`.
        opset: as in `to_proto`.
    """
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
    # A newer IR version in the header would make onnxruntime refuse a file that it could run.
    model.ir_version = min(model.ir_version, IR_VERSION)
    _strip(model)
    return model


def set_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Put `metadata` into the model as string properties; values that are not strings become JSON."""
    texts = {}
    for key, value in metadata.items():
        texts[key] = value if isinstance(value, str) else json.dumps(value)
    onnx.helper.set_model_props(model, texts)


def without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without its string properties, for tools that fail on them or copy them."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return bare


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A contiguous copy of `module` with BatchNorm folded into the convolution before it.

    This looks into nn.Sequential only: there, in any network, it is certain that one layer follows the other.
    What it leaves, torch's exporter folds in the graph, which takes longer.
    """
    folded = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    # With duplicates: a module that stands in two places is counted twice.
    uses = Counter(id(m) for _, m in folded.named_modules(remove_duplicate=False))
    for parent in folded.modules():
        # Also children of nn.Sequential, such as ConvBN, unless they run their layers in another way.
        if type(parent).forward is not nn.Sequential.forward:
            continue
        for first, second in itertools.pairwise(parent._modules):
            conv, norm = parent._modules[first], parent._modules[second]
            # A layer that the network uses in a second place must keep its own weights.
            if not uses[id(conv)] == uses[id(norm)] == 1:
                continue
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
                continue
            parent._modules[first], parent._modules[second] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose log and warnings give advice about itself that a user cannot act on."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter says about the source: stack traces and paths of this machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    for holder in (graph, *graph.node, *values, *model.functions):
        holder.doc_string = ""
        del holder.metadata_props[:]
