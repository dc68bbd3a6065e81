"""Export from Python: any torch image classifier (torchvision's, timm's, yours) as a verified file."""

import copy
import warnings
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from export.bake import Bake, CenterCrop, PixelClassifier
from export.formats.format import Array
from export.graph.gate import split_images
from export.job import ExportJob
from export.manifest import Manifest
from export.pipeline import check_folder, check_path, write_file
from export.targets import find_target
from export.targets.target import Target
from export.verify import Batches, Parity, check_module, compare_file, reference_outputs

# Images that are compared at once: a file with a free batch axis must be right for more than one image.
BATCH = 32


def to_onnx(
    module: nn.Module,
    path: Path | str,
    target: Target | str = "cpu",
    *,
    example: Tensor | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    calibration: Tensor | None = None,
    classes: Sequence[str] | None = None,
    bake: Bake | None = None,
    max_drop: float = 0.5,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """Write a classifier as a file for a target, compare it with torch, and write its manifest beside it.

        export.to_onnx(timm.create_model("mobilenetv3_small_100").eval(), "small.onnx")

    Args:
        module: a classifier in eval mode: (N, C, H, W) to logits (N, K). It is not changed. One in float16 is
            computed in float32, as the file is.
        path: the file; its name must end as the target's files do (`.onnx` for most).
        target: a name of `python -m export.targets`, or a Target. A file that cannot be run here, such as
            an mlpackage without macOS, is not compared: the manifest's `not_run` says so.
        example: one image or more (N, C, H, W), from which the size is taken. Without it, the size is that
            of `images`, or the one that timm notes on its models, or 3 x 224 x 224.
        images: normalised images (N, C, H, W) to verify on. Without them, random numbers are compared, which
            a quantised file does not allow.
        labels: classes (N,) of the images; without them, agreeing with torch counts as accuracy.
        calibration: other normalised images, which give the ranges of a quantised file. Without them, up to
            half of `images` do, at most 256, and the rest judge the file: no image does both.
        classes: names of the outputs.
        bake: put normalisation, softmax, and what makes an image of any size one of the network's into the
            graph; the file then takes uint8 pixels.
        max_drop: points of top-1 that the file may lose on `images`.
        facts: more keys for the manifest and the file's metadata.

    Raises:
        UserError: the module cannot be exported, or the file is not as good as the module; then there is no
            file.
    """
    path = Path(path)
    if isinstance(target, str):
        target = find_target(target)
    _check_call(module, path, target, images)
    known = {"subnet": path.stem} | (facts or {})
    x_NCHW = _images_to_try(module, images, example)
    if target.is_quantized and calibration is None:
        x_NCHW, labels, calibration = _set_aside(x_NCHW, labels)
    job = job_of_module(module, x_NCHW, labels, classes, bake, known)
    if target.is_quantized and calibration is not None:
        job = job._replace(calibration=_ranges(calibration, bake))
    written = write_file(job, target, path, max_drop)
    if written.manifest is None:
        raise UserError(f"'{path}' is not written: it {written.complaint}.")
    if note := (written.manifest.quantization or {}).get("note"):
        warnings.warn(f"{path.name}: {note}.", stacklevel=2)
    return written.manifest


def _check_call(module: nn.Module, path: Path, target: Target, images: Tensor | None) -> None:
    """Report mistakes in a call of `to_onnx`, before anything takes time."""
    check_path(path, target)
    check_module(module)
    check_folder(path)
    if images is None and target.is_quantized:
        raise UserError(
            f"Target {target.name} is quantised; give images to calibrate and to verify with (images=)."
        )


def verify_file(
    path: Path | str,
    module: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    bake: Bake | None = None,
) -> Parity:
    """Compare a model file with a torch module on images of yours.

        parity = export.verify_file("small.onnx", net, images)
        parity.relative_error, parity.same_top1, parity.complaint("float32")

    The file runs in the runtime of its format, in an exact session: 8-bit products do not saturate, whatever
    the CPU. It needs no manifest.

    Args:
        path: the model file.
        module: a classifier in eval mode, float32: (N, C, H, W) to logits (N, K). It is not changed.
        images: normalised images (N, C, H, W).
        labels: classes (N,) of the images; without them, agreeing with torch counts as accuracy.
        bake: what the file was exported with, if it takes pixels.

    Raises:
        UserError: the file is missing or damaged, does not take these images, or its runtime is not
            installed.
    """
    x_NCHW = images.detach().cpu().float()
    inputs = _inputs(x_NCHW, bake)
    check_module(module)
    network = _own_copy(module)
    whole = (PixelClassifier(network, bake) if bake else network).eval()
    return compare_file(reference_outputs(whole, _batches(inputs, labels)), Path(path))


def job_of_module(
    module: nn.Module,
    x_NCHW: Tensor,
    labels: Tensor | None,
    classes: Sequence[str] | None,
    bake: Bake | None,
    facts: dict[str, Any],
) -> ExportJob:
    """The export job of a module that comes from no run folder.

    Raises:
        UserError: there are not as many labels as images, or not as many classes as outputs.
    """
    if bake is not None and bake.crop is not None:
        _check_crop(x_NCHW, bake, bake.crop)
    inputs = _inputs(x_NCHW, bake)
    batches = _batches(inputs, labels)
    network = _own_copy(module)
    whole = (PixelClassifier(network, bake) if bake else network).eval()
    reference = reference_outputs(whole, batches)
    outputs = reference.output_NK.shape[1]
    if classes is not None and len(classes) != outputs:
        raise UserError(f"There are {len(classes)} names of classes, but the network has {outputs} outputs.")
    known = {
        "classes": None if classes is None else list(classes),
        "preprocessing": _preparation(x_NCHW, bake),
        "architecture": {"kind": "torch", "module": type(module).__name__},
        "macs": count_macs(network, x_NCHW[:1]),
        "params": count_parameters(network),
    }
    return ExportJob(
        module=whole,
        # Two images: torch's exporter takes an axis of length one for a constant.
        example=np.concatenate([inputs[:1], inputs[:1]]),
        reference=reference,
        calibration=[],
        layout=bake.layout if bake else "NCHW",
        probabilities=bool(bake and bake.softmax),
        # A network of anybody may compute tables of positions, which become constants of its graph.
        parameters=None,
        facts=facts | known,
        graphs={},
        crop=bake.crop if bake else None,
    )


def _own_copy(module: nn.Module) -> nn.Module:
    """A copy on CPU in float32, in which every number of float16 and bfloat16 is exact."""
    # The caller's may be on a GPU, and stays there.
    return copy.deepcopy(module).cpu().float()


def _images_to_try(module: nn.Module, images: Tensor | None, example: Tensor | None) -> Tensor:
    """Images (N, C, H, W) to compare on: the given ones, the example, or noise of the module's size."""
    if images is not None:
        return images.detach().cpu().float()
    if example is not None:
        return example.detach().cpu().float()
    return torch.randn(4, *_input_size(module), generator=torch.Generator().manual_seed(0))


def _inputs(x_NCHW: Tensor, bake: Bake | None) -> Array:
    """Normalised images as the file takes them."""
    # With normalisation in the graph the file takes pixels, so the images are turned back into pixels.
    return (bake.pixels(x_NCHW) if bake else x_NCHW).contiguous().numpy()


def _check_crop(x_NCHW: Tensor, bake: Bake, crop: CenterCrop) -> None:
    """Raise UserError if images are not what a baked crop makes of an image."""
    sides = tuple(x_NCHW.shape[2:])
    if sides != (crop.side, crop.side) or bake.layout != "NHWC" or x_NCHW.shape[1] not in (1, 3):
        raise UserError(
            f"The crop gives gray or colour images of {crop.side} x {crop.side} pixels in the layout NHWC, "
            f"but the network's have {sides[0]} x {sides[1]} pixels and {x_NCHW.shape[1]} channels, and the "
            f"layout is {bake.layout}; give CenterCrop the network's side."
        )


def _set_aside(x_NCHW: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """(images that judge a quantised file, their labels, images that give its ranges)."""
    _check_count(x_NCHW, labels)
    split = split_images(len(x_NCHW))
    kept = None if labels is None else labels[split.judges]
    return x_NCHW[split.judges], kept, x_NCHW[split.calibration]


def _ranges(calibration: Tensor, bake: Bake | None) -> list[Array]:
    """Batches of the images that give the ranges of a quantised file, as the file takes them."""
    inputs = _inputs(calibration.detach().cpu().float(), bake)
    return [batch for batch, _ in _batches(inputs, None)()]


def _check_count(inputs: Sized, labels: Tensor | None) -> None:
    """Raise UserError if there are not as many labels as inputs."""
    if labels is not None and len(labels) != len(inputs):
        raise UserError(f"There are {len(inputs)} images but {len(labels)} labels; they must be as many.")


def _batches(inputs: Array, labels: Tensor | None) -> Batches:
    """Batches of inputs (N, ...) with their classes (N,), for a `Reference`.

    Raises:
        UserError: there are not as many labels as inputs.
    """
    _check_count(inputs, labels)
    y = None if labels is None else labels.cpu().numpy()

    def batches() -> Iterator[tuple[Array, Array | None]]:
        for start in range(0, len(inputs), BATCH):
            part = slice(start, start + BATCH)
            yield inputs[part], None if y is None else y[part]

    return batches


def _preparation(x_NCHW: Tensor, bake: Bake | None) -> dict[str, Any]:
    """The manifest's description of how to prepare an image, as far as a tensor of images tells it."""
    channels = x_NCHW.shape[1]
    known: dict[str, Any] = {
        "resize": list(x_NCHW.shape[2:]),
        "channels": {1: "gray", 3: "RGB"}.get(channels, channels),
    }
    if bake is None:
        return known | {"baked": False}
    own = bake.crop.facts() if bake.crop else {}
    scale = {"scale": "divide by 255", "mean": list(bake.mean), "std": list(bake.std)}
    return known | own | scale | {"baked": bake.step}


def _input_size(module: nn.Module) -> tuple[int, ...]:
    """(C, H, W) that timm notes on its models, or 224 pixels and the channels of the first convolution."""
    for noted in ("pretrained_cfg", "default_cfg"):
        settings = getattr(module, noted, None)  # older models have the second name only
        if isinstance(settings, dict) and "input_size" in settings:
            return tuple(settings["input_size"])
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels, 224, 224  # the usual side of ImageNet's images
    return 3, 224, 224
