"""The device that models run on, CPU threads, and precision."""

import torch
from threadpoolctl import threadpool_limits

from engine.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: a device as torch names it, such as `cuda:1`, or `auto`: cuda where there is one, else cpu.

    Raises:
        UserError: the name is not a device of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(
            0, device=device
        )  # torch.device takes every valid name, also of a device that is not here
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"Device '{name}' is not available here; use auto, cpu, or cuda on a machine with a GPU."
        ) from None
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


def autocast(device: torch.device) -> torch.autocast:
    """A context in which layers compute in bfloat16 on CUDA, and in float32 elsewhere.

    Elsewhere float32 is no slower, and exactly reproducible.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
