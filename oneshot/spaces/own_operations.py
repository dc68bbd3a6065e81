"""Operations of a user's own: constructors in a Python module, called with (channels, stride)."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError

Constructors = tuple[tuple[str, str], ...]  # (name of the operation, where its constructor is)
TRIED_SIZE = 8  # pixels of the map that a new operation is tried on


def located(constructor: str, folder: Path) -> str:
    """`my_module:Name` with the file of the module, if that lies in `folder`; else as it is."""
    module, _, name = constructor.partition(":")
    file = folder / f"{module}.py"
    return f"{file.resolve()}:{name}" if file.is_file() else constructor


@functools.cache
def load_module(where: str) -> ModuleType:
    """The module in a file, or of that name on Python's path."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = Path(where)
    if not file.is_file():
        # Where a genotype came from another machine, the file may have come with it.
        file = Path(file.name)
    if not file.is_file():
        return importlib.import_module(file.stem)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, "a file that ends with .py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def find_constructor(location: str) -> Callable[[int, int], nn.Module]:
    """The constructor at `file.py:Name` or `package.module:Name`.

    Raises:
        UserError: there is none.
    """
    where, _, name = location.rpartition(":")
    file = Path(where)
    is_absent = where.endswith(".py") and not file.is_file() and not Path(file.name).is_file()
    try:
        module = load_module(where)
    except (ImportError, OSError, ValueError) as error:
        remedy = "write it as module:Name, with the module's file beside the YAML or on Python's path"
        if is_absent:
            remedy = f"copy {file.name} into the current folder, or put it on Python's path"
        raise UserError(f"There is no constructor '{location}' ({error}); {remedy}.") from None
    # A user's code may raise anything.
    except Exception as error:
        raise UserError(f"Module '{where}' cannot be imported: {_told(error)}.") from None
    found: Any = getattr(module, name, None)
    if found is None:
        # A module of Python's own may have no file.
        loaded = getattr(module, "__file__", None) or where
        raise UserError(
            f"There is no constructor '{location}' ('{loaded}' has no '{name}'); define it there, or correct "
            "the name."
        )
    return found


def _told(error: Exception) -> str:
    """What was raised, with its type, without which some messages say little."""
    return f"{type(error).__name__}: {error}"


def build_own_operation(location: str, channels: int, stride: int) -> nn.Module:
    """The module of an operation: (N, C, H, W) -> (N, C, H / stride, W / stride).

    Raises:
        UserError: it cannot be built, or gives a map of another shape.
    """
    constructor = find_constructor(location)
    try:
        module = constructor(channels, stride)
        module.eval()
        with torch.no_grad():
            output: Any = module(torch.zeros(2, channels, TRIED_SIZE, TRIED_SIZE))
    # A user's code may raise anything; what is no module has no `eval`.
    except Exception as error:
        raise UserError(
            f"Operation '{location}' fails with {channels} channels and stride {stride}: {_told(error)}."
        ) from None
    side = TRIED_SIZE // stride
    made = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if made != (2, channels, side, side):
        raise UserError(
            f"Operation '{location}' with {channels} channels and stride {stride} makes {made} of "
            f"{(2, channels, TRIED_SIZE, TRIED_SIZE)}; it must make {(2, channels, side, side)}."
        )
    return module.train()


@functools.cache
def own_operation_cost(location: str, channels: int, size: int, stride: int) -> tuple[int, int]:
    """(MACs, parameters) of an operation with an output of `size` pixels, as torch counts them."""
    module = build_own_operation(location, channels, stride).eval()
    macs = count_macs(module, torch.zeros(1, channels, size * stride, size * stride))
    return macs, count_parameters(module)
