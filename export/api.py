"""`export.to_onnx(module, path, target=...)`: any torch image classifier (torchvision's, timm's, yours) as a
verified file."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from export.graph import Array
from export.manifest import Manifest
from export.pipeline import Bake, Baked, Layout, Subject, write_file
from export.targets import Target, find_target
from export.verify import check_module, refer

BATCH = 32


def to_onnx(
    module: nn.Module,
    path: Path | str,
    target: Target | str = "cpu",
    *,
    example: Tensor | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    bake: Bake | None = None,
    max_drop: float = 0.5,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """Write `module` as `path` for a target, compare the file with torch, and write what is known beside it
    as .json.

        export.to_onnx(timm.create_model("mobilenetv3_small_100").eval(), "small.onnx")

    Args:
        module: a classifier in eval mode, float32: (N, C, H, W) to logits (N, K). It is not changed.
        path: the file; its ending must be that of the target (.onnx or .ort).
        target: a name of `python -m export.targets`, or a Target.
        example: one image or more, (N, C, H, W), to know the size from; none: the images', what timm says, or
            3 x 224 x 224.
        images: normalised images to verify on, and for int8 to calibrate on; none: random numbers, not for
            int8.
        labels: their classes (N,); without them, agreeing with torch counts as accuracy.
        classes: names of the outputs.
        bake: put normalisation, and softmax, into the graph; the file then takes uint8 pixels.
        max_drop: points of top-1 that the file may lose on `images`.
        facts: more for the manifest and the file's metadata.

    Raises:
        UserError: the module cannot be exported, or the file is not as good as the module; then there is no
            file.
    """
    path, target = Path(path), find_target(target) if isinstance(target, str) else target
    if path.suffix != f".{target.format}":
        raise UserError(f"Target {target.name} writes .{target.format} files; name '{path}' so.")
    check_module(module)
    if images is None and target.precision == "int8":
        raise UserError(
            f"Target {target.name} is quantised; give images to calibrate and to verify with (images=)."
        )
    if images is not None and labels is not None and len(images) != len(labels):
        raise UserError(f"There are {len(images)} images but {len(labels)} labels; they must be as many.")
    noise = (
        torch.randn(4, *_size(module), generator=torch.Generator().manual_seed(0))
        if images is None and example is None
        else None
    )
    x = next(tensor for tensor in (images, example, noise) if tensor is not None).detach().cpu().float()
    subject = _subject(
        module, x, labels, images is not None, classes, bake, {"subnet": path.stem} | (facts or {})
    )
    written = write_file(subject, target, path, max_drop)
    if written.manifest is None:
        raise UserError(f"'{path}' is not written: it {written.complaint}.")
    return written.manifest


def _subject(
    module: nn.Module,
    x_NCHW: Tensor,
    labels: Tensor | None,
    real: bool,
    classes: Sequence[str] | None,
    bake: Bake | None,
    facts: dict[str, Any],
) -> Subject:
    inputs = (bake.pixels(x_NCHW) if bake else x_NCHW).contiguous().numpy()
    y = None if labels is None else labels.cpu().numpy()

    def batches() -> Iterator[tuple[Array, Array | None]]:
        for start in range(0, len(inputs), BATCH):
            yield inputs[start : start + BATCH], None if y is None else y[start : start + BATCH]

    module = copy.deepcopy(module).cpu()  # it may be on a GPU, and stays there
    whole = (Baked(module, bake) if bake else module).eval()
    reference = refer(whole, batches)
    if classes is not None and len(classes) != reference.output_NK.shape[1]:
        raise UserError(
            f"There are {len(classes)} names of classes, but the network has {reference.output_NK.shape[1]} "
            "outputs."
        )
    known = {
        "classes": None if classes is None else list(classes),
        "preprocessing": _preparation(x_NCHW, bake),
        "architecture": {"kind": "torch", "module": type(module).__name__},
        "macs": count_macs(module, x_NCHW[:1]),
        "params": count_parameters(module),
    }
    example = np.concatenate([inputs[:1], inputs[:1]])
    calibration = [batch for batch, _ in batches()] if real else []
    numbers = count_parameters(module) + sum(b.numel() for b in module.buffers())
    layout: Layout = bake.layout if bake else "NCHW"
    return Subject(
        whole,
        example,
        reference,
        calibration,
        layout,
        bool(bake and bake.softmax),
        numbers,
        facts | known,
        {},
    )


def _preparation(x_NCHW: Tensor, bake: Bake | None) -> dict[str, Any]:
    known: dict[str, Any] = {
        "resize": list(x_NCHW.shape[2:]),
        "channels": {1: "gray", 3: "RGB"}.get(x_NCHW.shape[1], x_NCHW.shape[1]),
    }
    return known | (
        {"scale": "divide by 255", "mean": list(bake.mean), "std": list(bake.std), "baked": True}
        if bake
        else {"baked": False}
    )


def _size(module: nn.Module) -> tuple[int, ...]:
    """(C, H, W) that timm notes on its models, or 224 pixels and the channels of the first convolution."""
    for noted in ("pretrained_cfg", "default_cfg"):
        settings = getattr(module, noted, None)
        if isinstance(settings, dict) and "input_size" in settings:
            return tuple(settings["input_size"])
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return (first.in_channels if first else 3, 224, 224)
