"""Where models go and in which precision."""

import ctypes
import sys

import torch

from engine.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu, whose allocator is then set for training.

    Raises:
        UserError: the name is not a device of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"Device '{name}' is not available here; use auto, cpu, or cuda on a machine with a GPU."
        ) from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep freed blocks of up to 1 GiB, which it otherwise gives back to the kernel from 32 MiB on.

    Activations are of that size and are freed and wanted again in every step; faulting their pages in anew
    took a fifth to a third of a step on 128-pixel images (`benchmarks/supernet_step.py`). Costs a few percent
    of peak memory. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        size = 2**30 if keep else 2**17
        mallopt(M_MMAP_THRESHOLD, size)
        mallopt(M_TRIM_THRESHOLD, size)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; float32 elsewhere, where it is no slower and exactly reproducible."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
