"""The device that models run on, CPU threads, and what env.json says of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from engine.compute.precision import TrainingPrecision, switches
from engine.errors import UserError

LARGEST_NUMBER = 16  # bytes of torch's largest type of number
DRIVER = Path("/proc/driver/nvidia/version")  # where Linux has the version of NVIDIA's driver


def pick_device(name: str) -> torch.device:
    """The device of that name; of several GPUs it becomes the current one.

    Args:
        name: a device as torch names it, such as `cuda:1`, or `auto`: cuda where there is one, else cpu.

    Raises:
        UserError: the name is not a device of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        # torch.device takes every valid name, also of a device that is not here.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"Device '{name}' is not available here; use auto, cpu, or cuda on a machine with a GPU."
        ) from None
    # Streams, graphs and pinned memory belong to the current GPU if nobody names one. With another as the
    # current one they would be on it, and so would a context of some hundred megabytes.
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def use_threads(count: int | None) -> None:
    """Limit the CPU threads of torch and of NumPy's linear algebra.

    Tiny networks and a few hundred measured subnets are fastest with one: threads would wait for each other.

    Args:
        count: number of threads; None: as many as the libraries decide.
    """
    if count is not None:
        torch.set_num_threads(count)
        threadpool_limits(count)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without a wait of the host.

    From ordinary memory a copy to a GPU waits, whatever `non_blocking` says; hence the pinned memory.
    """
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Small tensors of the CPU on the device, all by one copy; as `send`, without a wait of the host.

    Args:
        tensors: of any shapes and types; if all are on the device already they stay as they are.
        device: where they go.
    """
    if device.type != "cuda" or all(tensor.device.type == "cuda" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        # A number of any type must begin at a multiple of its size, and none is larger than this.
        end += -(-tensor.nbytes // LARGEST_NUMBER) * LARGEST_NUMBER
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for part, tensor in zip(_parts(packed, starts, tensors), tensors, strict=True):
        part.copy_(tensor)
    # torch's allocator gives the pinned memory to nobody else before the copy has been made.
    return _parts(packed.to(device, non_blocking=True), starts, tensors)


def _parts(packed: Tensor, starts: list[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of bytes as tensors of the types and shapes of others."""
    parts = []
    for start, tensor in zip(starts, like, strict=True):
        parts.append(packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
    return parts


def device_facts(device: torch.device, precision: TrainingPrecision) -> dict[str, Any]:
    """What env.json says of the device: its name, what it computes in, and versions that decide results.

    Args:
        device: where a run trains.
        precision: what its layers compute in.
    """
    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": precision,
    }
    if device.type != "cuda":
        return facts
    facts["gpu"] = torch.cuda.get_device_name(device)
    now, cudnn = switches(), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    facts["float32"] = {"convolutions": now.conv, "matrix_products": now.matmul}
    facts["cudnn_benchmark"] = now.benchmark
    runtime = torch.version.cuda or torch.version.hip
    facts["cuda"] = {"runtime": runtime, "cudnn": cudnn, "driver": _driver()}
    return facts


def _driver() -> str | None:
    """The version of NVIDIA's driver, such as 550.54.14; None where the system does not say."""
    try:
        first = DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024
    numbers = [word for word in first.split() if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else None
