"""Proof that an exported file computes what the torch module computes, and a sentence for everything that may
be wrong before."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from engine.errors import UserError
from export.graph import Array, names_this_machine

TOLERANCE = 1e-4
FLOAT16_SNR = 40.0
Batches = Callable[[], Iterable[tuple[Array, Array | None]]]


class Reference(NamedTuple):
    """What the torch module says about images, to be compared with what files say.

    Args:
        batches: gives the same images again each time, as (input as the file takes it, classes or None).
        output_NK: the module's output.
        labels_N: true classes; where there are none, the module's own decisions.
        labelled: whether they are true ones.
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
    """A file against the module.

    Args:
        relative_error: largest difference of outputs, relative to the largest output.
        snr_db: power of the outputs over power of the differences, in decibels.
        same_top1: share of images with the same decision; two classes that are a tie in torch within the
            tolerance count as one.
        accuracy: top-1 of the file, in [0, 1].
        images: how many were tried, one alone first, then all in batches.
    """

    relative_error: float
    snr_db: float
    same_top1: float
    accuracy: float
    images: int

    def complaint(self, precision: str) -> str:
        """What is wrong for a file of this precision, or nothing. For int8 the accuracy gate of `quantize`
        decides instead."""
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
def refer(module: nn.Module, batches: Batches) -> Reference:
    """The module's output on all images, on CPU in float32.

    Raises:
        UserError: the module is not ready to be exported, or does not take these images.
    """
    check_module(module)
    outputs, labels = [], []
    for x, y in batches():
        try:
            y_NK = module(torch.from_numpy(x))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{type(module).__name__} does not take images of shape {x.shape}: {_first_line(error)}."
            ) from None
        if not isinstance(y_NK, torch.Tensor):
            raise UserError(
                f"{type(module).__name__} returns {type(y_NK).__name__}, not one tensor of logits; wrap it "
                "so that it does."
            )
        outputs.append(y_NK.numpy())
        labels.append(y)
    if not outputs:
        raise UserError("There is no image to verify with; give some.")
    output_NK = np.concatenate(outputs)
    if output_NK.ndim != 2:
        raise UserError(
            f"{type(module).__name__} returns {output_NK.shape}, not logits (images, classes); export a "
            "classifier."
        )
    if not np.isfinite(output_NK).all():
        raise UserError(
            f"{type(module).__name__} itself gives NaN or infinity on these images; it is not worth "
            "exporting."
        )
    known = [y for y in labels if y is not None]
    labelled = len(known) == len(labels)
    labels_N = np.concatenate(known) if labelled else output_NK.argmax(1)
    return Reference(batches, output_NK, labels_N, labelled)


def check_module(module: nn.Module) -> None:
    """Refuse what would become a wrong file.

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


def open_session(path: Path, exact: bool = True) -> ort.InferenceSession:
    """The file in onnxruntime on CPU, with as many threads as torch has.

    Args:
        path: the model file.
        exact: 8-bit products are summed without saturation. Otherwise CPUs that have AVX2 and no VNNI
            saturate them, which is faster there and gives other numbers than every other device.

    Raises:
        UserError: it is missing, truncated or not a model.
    """
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each, below Exception
        reason = _first_line(error).replace(str(path), path.name)
        raise UserError(
            f"'{path}' is not a model that onnxruntime can run, or is truncated or damaged ({reason}); "
            "export it again."
        ) from None


def run_file(session: ort.InferenceSession, x: Array) -> Array:
    """Outputs (N, K) for inputs x; one image at a time if the file has no free batch axis.

    Raises:
        UserError: the images have another shape or type than the file takes.
    """
    (wanted,) = session.get_inputs()
    kind = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}.get(wanted.type)
    fits = len(wanted.shape) == x.ndim and all(
        isinstance(w, str) or w == g for w, g in zip(wanted.shape[1:], x.shape[1:], strict=True)
    )
    if not fits or kind != x.dtype:
        raise UserError(
            f"The file takes {wanted.type} {wanted.shape}, but was given {x.dtype} {list(x.shape)}; its "
            "metadata says how to prepare them."
        )
    parts = [x] if isinstance(wanted.shape[0], str) else [x[i : i + 1] for i in range(len(x))]
    return np.concatenate([session.run(None, {wanted.name: part})[0] for part in parts])


def compare(reference: Reference, path: Path) -> Parity:
    """The file against the module on all images of `reference`: the first one alone, then all in batches.

    Raises:
        UserError: the file cannot be run on them.
    """
    session = open_session(path)
    return parity_of(reference, lambda x: run_file(session, x))


def parity_of(reference: Reference, run: Callable[[Array], Array]) -> Parity:
    """What `run`, from inputs to outputs (N, K), gives against the module: the first image alone, which
    counts in the errors only, then all in batches."""
    outputs = [run(x) for x, _ in reference.batches()]
    alone = run(next(iter(reference.batches()))[0][:1])
    wanted, got = (
        np.concatenate([reference.output_NK[:1], reference.output_NK]),
        np.concatenate([alone, *outputs]),
    )
    scale = np.abs(wanted).max()
    difference = np.abs(got - wanted).max()
    noise = float(np.square(got - wanted, dtype=np.float64).mean())
    chosen = np.take_along_axis(wanted, got.argmax(1)[:, None], 1)[:, 0]
    return Parity(
        relative_error=float(difference / scale) if scale > 0 else float(difference > 0),
        snr_db=float(10 * np.log10(np.square(wanted, dtype=np.float64).mean() / noise))
        if noise > 0
        else 200.0,
        same_top1=float((chosen >= wanted.max(1) - TOLERANCE * scale)[1:].mean()),
        accuracy=float((got[1:].argmax(1) == reference.labels_N).mean()),
        images=len(reference.output_NK),
    )


def milliseconds(path: Path, x: Array, seconds: float = 0.3) -> float:
    """Time of one image in onnxruntime on this CPU: the fastest fifth of the runs in `seconds`, at least
    20."""
    session, image = open_session(path, exact=False), x[:1]
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 23 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run_file(session, image)
        times.append(1e3 * (time.perf_counter() - before))
    return float(np.percentile(times[3:], 20))


def check_model(model: onnx.ModelProto, name: str, parameters: int) -> str:
    """A sentence about what is wrong with the file itself, or nothing.

    It must be valid ONNX, hold no training-time BatchNorm, no path of this machine, and no more than the
    network's own weights.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"{name} is not valid ONNX: {_first_line(error)}."
    stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    if stored > parameters * 1.05 + 1000:
        return f"{name} stores {stored} numbers, but the network has only {parameters} parameters."
    if any(a.name == "training_mode" and a.i for node in model.graph.node for a in node.attribute):
        return f"{name} has layers in training mode."
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return f"{name} still has BatchNormalization nodes; they should be folded."
    if names_this_machine(model):
        return f"{name} names files of this machine."
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
