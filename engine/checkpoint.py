"""Weights as safetensors (nothing runs when they are loaded) and resume state as one atomic file."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import UserError
from engine.run import atomic


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Tensors by name, contiguous and on CPU."""
    with atomic(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"Weights '{path}' cannot be loaded ({error}); train again or copy the file again.") from None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Everything needed to resume, in one file, so that a kill at any moment leaves the last complete one."""
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """A state written by `save_state`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Resume state '{path}' cannot be loaded ({reason}); start again with --overwrite.") from None
    assert isinstance(state, dict)
    return state
