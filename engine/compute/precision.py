"""In what precision layers compute: chosen for training, and always float32 where a network is judged.

An NVIDIA GPU from Ampere (2020) on can round the inputs of a float32 product to TF32, which keeps 10 bits
after the leading one instead of 23. Left alone, torch does that in convolutions and not in matrix products,
so nobody has chosen it. bfloat16 keeps 7 bits; only layers compute in it, and losses, weights and statistics
stay float32.

These switches belong to the whole process. `training_in` sets them for a block and puts them back, and
`float32_as_exported` does so for what is measured or calibrated, also inside such a block.
"""

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch

TrainingPrecision = Literal["float32", "tf32", "bf16"]
# Of supernets, single architectures and tuned subnets, if nobody asks for another.
USUAL_PRECISION: TrainingPrecision = "bf16"
AMPERE = (8, 0)  # the compute capability from which a GPU has TF32 and bfloat16

# Whether layers compute in bfloat16 now; `training_in` sets it. torch has such a state for float32 only.
_bf16 = False


class Switches(NamedTuple):
    """torch's switches for CUDA.

    Args:
        conv: how convolutions compute float32: "ieee" exactly, "tf32" rounded, or "none", torch's default.
        rnn: the same for cuDNN's recurrent layers.
        matmul: the same for matrix products.
        benchmark: whether cuDNN tries its kernels at every new shape and keeps the fastest.
    """

    conv: str
    rnn: str
    matmul: str
    benchmark: bool


def switches() -> Switches:
    """The switches as they are."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul.fp32_precision
    return Switches(cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul, cudnn.benchmark)


def _switch(to: Switches) -> None:
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    _hear_of_deprecation()
    # The older switches first. torch raises an error where somebody reads those while they and the new ones
    # disagree, and its compiler reads them when it chooses kernels.
    cudnn.allow_tf32 = to.conv == "tf32"
    matmul.allow_tf32 = to.matmul == "tf32"
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = to.conv, to.rnn
    matmul.fp32_precision = to.matmul
    cudnn.benchmark = to.benchmark


@functools.cache
def _hear_of_deprecation() -> None:
    """Let torch 2.9 say, once and unheard, that it will deprecate the older switches; 2.14 says nothing."""
    # Not around every switch: Python forgets at such a block which warnings it has shown already.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = True


@contextmanager
def training_in(precision: TrainingPrecision, static_shapes: bool = False) -> Iterator[None]:
    """While the block runs, layers compute in `precision`.

    Args:
        precision: of layers. What a device cannot do is not asked for: see `precision_on`.
        static_shapes: every step has the same shapes. cuDNN then tries its kernels once and keeps the
            fastest; where shapes change it would try them again and again.
    """
    global _bf16
    before = switches(), _bf16
    rounding = "ieee" if precision == "float32" else "tf32"
    _switch(Switches(rounding, rounding, rounding, static_shapes))
    _bf16 = precision == "bf16"
    try:
        yield
    finally:
        _bf16 = before[1]
        _switch(before[0])


@contextmanager
def float32_as_exported() -> Iterator[None]:
    """While the block runs, everything computes in float32 without TF32, as exported files do.

    It also decorates functions. An accuracy, or statistics of BatchNorm, then depend neither on how the
    network was trained nor on the GPU.
    """
    with ExitStack() as stack:
        stack.enter_context(training_in("float32"))
        for kind in ("cpu", "cuda"):
            # Of the caller's, who may call from a block of mixed precision.
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context for the forward pass of layers: bfloat16 inside of `training_in("bf16")`, else no change.

    Losses and backward passes stay outside of it.
    """
    return torch.autocast(device.type, torch.bfloat16) if _bf16 else nullcontext()


def precision_on(
    device: torch.device,
    asked: TrainingPrecision | None,
    usual: TrainingPrecision,
    cpu_has_bf16: bool = False,
) -> TrainingPrecision:
    """The precision that a training has on a device.

    Args:
        device: where it trains.
        asked: what the user wants; None: what is usual.
        usual: what the command takes on a GPU if nobody asks.
        cpu_has_bf16: whether the command computes in bfloat16 on a CPU for who asks for it.

    Returns:
        What is wanted, or the next best that the device has: bf16, tf32, float32 in this order.
    """
    wanted = asked or usual
    has: set[TrainingPrecision] = {"float32"}
    if device.type == "cuda" and torch.version.hip:
        has.add("bf16")  # AMD's GPUs compute float32 as it is
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE:
        has |= {"bf16", "tf32"}
    # Only for who asks: CPUs are slower in bfloat16, few excepted.
    elif device.type == "cpu" and cpu_has_bf16 and asked:
        has.add("bf16")
    order: tuple[TrainingPrecision, ...] = ("bf16", "tf32", "float32")
    return next(one for one in order[order.index(wanted) :] if one in has)


def describe_precision(
    device: torch.device, found: TrainingPrecision, asked: TrainingPrecision | None, usual: TrainingPrecision
) -> str:
    """A sentence where a device does not compute in what is wanted; empty where it does.

    Args:
        device, asked, usual: as `precision_on` takes them.
        found: what that returned.
    """
    wanted = asked or usual
    # That a CPU computes in float32 needs no word, unless somebody wants something else.
    if found == wanted or (device.type != "cuda" and asked is None):
        return ""
    return f"layers compute in {found}, since device {device} does not train in {wanted} here"
