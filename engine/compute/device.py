"""Where models go and in which precision."""

import torch
from threadpoolctl import threadpool_limits

from engine.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is cuda where there is one, else cpu.

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
    return device


def use_threads(count: int | None) -> None:
    """Let torch and the linear algebra of NumPy use this many CPU threads; None: as many as they decide.

    Tiny networks and a few hundred measured subnets are fastest with one: threads would wait for each other.
    """
    if count is not None:
        torch.set_num_threads(count)
        threadpool_limits(count)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; float32 elsewhere, where it is no slower and exactly reproducible."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
