"""Proof that an exported file computes what the torch module computes."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from engine.errors import UserError
from engine.onnx_timing import time_runs
from export.formats import format_of
from export.formats.format import Array, Run
from export.formats.onnx import first_line

TOLERANCE = 1e-4  # of the largest output; float32 kernels add in another order than torch does
FLOAT16_SNR = 40.0  # decibels: the noise of a float16 file may be 1% of its outputs
IDENTICAL_SNR = 200.0  # decibels, reported for outputs without any difference, instead of infinity
# Gives (inputs, classes or None), the same at each call; see `Reference.batches`.
Batches = Callable[[], Iterable[tuple[Array, Array | None]]]


class Reference(NamedTuple):
    """The outputs of the torch module on images, with which those of files are compared.

    Args:
        batches: gives the same images at each call, as (inputs as the file takes them, classes or None).
        output_NK: the module's outputs.
        labels_N: the true classes, or the module's own decisions if the true ones are not known.
        labelled: whether `labels_N` are the true classes.
    """

    batches: Batches
    output_NK: Array
    labels_N: Array
    labelled: bool

    @property
    def accuracy(self) -> float:
        """Top-1 of the module, in [0, 1]; 1 without true classes."""
        return float((self.output_NK.argmax(1) == self.labels_N).mean())


class Parity(NamedTuple):
    """How far the outputs of a file are from those of the module.

    Args:
        relative_error: largest difference of outputs, relative to the largest output.
        snr_db: power of the outputs over power of the differences, in decibels.
        same_top1: share of images with the same decision. Two classes that are a tie in torch, within the
            tolerance, count as the same.
        accuracy: top-1 of the file, in [0, 1].
        images: how many images were compared.
        lost: images that the module classifies rightly and the file does not.
        gained: images that the file classifies rightly and the module does not.
    """

    relative_error: float
    snr_db: float
    same_top1: float
    accuracy: float
    images: int
    lost: int = 0
    gained: int = 0

    def complaint(self, precision: str) -> str:
        """Half a sentence on what is wrong with a file of this precision; empty if nothing is.

        A quantised file is wrong only if it gives NaN or infinity: everything else about it is decided by
        the accuracy that it loses.
        """
        # Comparisons with NaN are false, so the limits below would let it pass.
        if not np.isfinite(self.relative_error):
            return "gives NaN or infinity"
        if precision == "float32" and (self.relative_error > TOLERANCE or self.same_top1 < 1.0):
            return (
                f"differs from torch by {self.relative_error:.1e} (limit {TOLERANCE:g}), same top-1 "
                f"{self.same_top1:.1%}"
            )
        if precision == "float16" and self.snr_db < FLOAT16_SNR:
            return (
                f"is too far from torch for float16: signal-to-noise {self.snr_db:.0f} dB (limit "
                f"{FLOAT16_SNR:g})"
            )
        return ""


@torch.no_grad()
def reference_outputs(module: nn.Module, batches: Batches) -> Reference:
    """Run the module on all images, on CPU in float32.

    Args:
        module: in eval mode; inputs (N, ...) to outputs (N, K).
        batches: as in `Reference`.

    Raises:
        UserError: the module is not ready to be exported, or does not take these images.
    """
    # First, since a module in training mode would change its own statistics when it is run.
    check_module(module)
    name = type(module).__name__
    outputs, labels = [], []
    for x, y in batches():
        try:
            y_NK = module(torch.from_numpy(x))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"{name} does not take images of shape {x.shape}: {first_line(error)}.") from None
        if not isinstance(y_NK, torch.Tensor):
            raise UserError(
                f"{name} returns {type(y_NK).__name__}, not one tensor of logits; wrap it so that it does."
            )
        outputs.append(y_NK.numpy())
        labels.append(y)
    if not outputs:
        raise UserError("There is no image to verify with; give some.")
    output_NK = np.concatenate(outputs)
    if output_NK.ndim != 2:
        raise UserError(
            f"{name} returns {output_NK.shape}, not logits (images, classes); export a classifier."
        )
    if not np.isfinite(output_NK).all():
        raise UserError(f"{name} itself gives NaN or infinity on these images; it is not worth exporting.")
    # Without true classes "accuracy" is agreement with torch, which is 1 for torch itself.
    known = [y for y in labels if y is not None]
    labelled = len(known) == len(labels)
    labels_N = np.concatenate(known) if labelled else output_NK.argmax(1)
    return Reference(batches, output_NK, labels_N, labelled)


def check_module(module: nn.Module) -> None:
    """Refuse a module that would become a wrong file.

    Raises:
        UserError: a part is in training mode, or a weight is NaN or infinite.
    """
    for name, part in module.named_modules():
        if part.training:
            what = f"'{name}' of it" if name else type(module).__name__
            raise UserError(
                f"The network cannot be exported: {what} is in training mode; call .eval() on the network "
                "first."
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"The network cannot be exported: weight '{name}' holds NaN or infinity; train it again or "
                "take a checkpoint."
            )


def compare_file(reference: Reference, path: Path, exact: bool = True) -> Parity:
    """Compare a file with the module on all images of `reference`.

    Args:
        reference: the images and the outputs of the module.
        path: the file.
        exact: sum 8-bit products exactly, as every device does but some x86 CPUs, so that the result is the
            file's and not this machine's. False: as a program on this CPU would.

    Raises:
        UserError: the file cannot be run on them.
    """
    return parity_of(reference, format_of(path).open(path, exact))


def parity_of(reference: Reference, run: Run) -> Parity:
    """Compare what `run` computes with the module.

    The first image is run alone, and then all images are run in batches, since a file may be right for one
    batch size only. The image that is run twice counts twice in the differences, and once in the shares.

    Args:
        reference: the images and the outputs of the module.
        run: from inputs (N, ...) to outputs (N, K).
    """
    first = next(iter(reference.batches()))[0]
    alone = run(first[:1])
    # The images are read again instead of kept: only the outputs of all of them are in memory.
    outputs = [run(x) for x, _ in reference.batches()]
    wanted = np.concatenate([reference.output_NK[:1], reference.output_NK])
    got = np.concatenate([alone, *outputs])
    scale = np.abs(wanted).max()
    difference = np.abs(got - wanted).max()
    # In float64: the squares of small differences would vanish in a float32 sum.
    noise = float(np.square(got - wanted, dtype=np.float64).mean())
    snr_db = IDENTICAL_SNR
    if noise > 0:
        snr_db = float(10 * np.log10(np.square(wanted, dtype=np.float64).mean() / noise))
    # torch's output for the class that the file decides for: within the tolerance of torch's best, it is a
    # tie.
    decided = np.take_along_axis(wanted, got.argmax(1)[:, None], 1)[:, 0]
    same = decided >= wanted.max(1) - TOLERANCE * scale
    right_N = got[1:].argmax(1) == reference.labels_N
    module_right_N = reference.output_NK.argmax(1) == reference.labels_N
    return Parity(
        # Outputs that are all 0 have no scale: any difference from them counts as 1.
        relative_error=float(difference / scale) if scale > 0 else float(difference > 0),
        snr_db=snr_db,
        same_top1=float(same[1:].mean()),
        accuracy=float(right_N.mean()),
        images=len(reference.output_NK),
        lost=int((module_right_N & ~right_N).sum()),
        gained=int((right_N & ~module_right_N).sum()),
    )


def milliseconds(path: Path, x: Array, seconds: float = 0.3) -> float:
    """Time of one image on this CPU, with as many threads as torch has.

    The session is not exact: it sums 8-bit products as a program on this machine would.

    Args:
        path: the model file.
        x: inputs, of which the first is taken.
        seconds: how long to measure.

    Returns:
        The 20th percentile of at least 20 runs, in milliseconds.
    """
    run, image = format_of(path).open(path, exact=False), x[:1]
    threads = torch.get_num_threads()
    # No upper limit of runs: a small network too is timed for the whole time.
    wall, _ = time_runs(lambda: run(image), threads, seconds, at_least=20, at_most=math.inf)
    return float(np.percentile(wall, 20))
