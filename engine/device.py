"""Where models go and in which precision."""

import contextlib
from collections.abc import Iterator

import torch

from engine.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu.

    Raises:
        UserError: the name is not a device of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"Device '{name}' is not available here; use auto, cpu, or cuda on a machine with a GPU.") from None
    return device


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; float32 elsewhere, where it is no slower and exactly reproducible."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` intra-op threads inside the block. Tiny networks run several times slower on more than one or two."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
