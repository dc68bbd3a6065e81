"""Weights as safetensors (nothing runs when they are loaded) and resume state as one atomic file."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import UserError, shortened
from engine.run import WEIGHTS, digest
from engine.runs.writing import atomic


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file.

    Args:
        path: the file.
        state: tensors by name, on any device and in any layout.

    Raises:
        UserError: the disk is full.
    """
    with atomic(path) as temporary:
        # safetensors refuses tensors that are not contiguous, such as channels_last weights.
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # what it raises instead of OSError
            raise UserError(
                f"Weights '{path}' cannot be written ({error}); free some space. The last checkpoint stays."
            ) from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name, on CPU.

    Raises:
        UserError: the file is missing or damaged, or its weights are NaN, infinite or all zero.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Weights '{path}' cannot be loaded ({error}); train again or copy the file again."
        ) from None
    _check_weights(path, weights)
    return weights


def _check_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Refuse weights with which every image gets the same answer, or none.

    Raises:
        UserError: a weight is NaN or infinite, or all of them are zero.
    """
    matrices = []
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            if not bool(tensor.isfinite().all()):
                raise UserError(
                    f"Weights '{path}' hold NaN or infinity, first in {shortened(name)}; train again, or "
                    "copy the file again."
                )
            # Biases and BatchNorm are zero in networks that are in order; all convolutions never are.
            if tensor.ndim > 1:
                matrices.append(tensor)
    if matrices and not any(bool(tensor.any()) for tensor in matrices):
        raise UserError(f"Weights '{path}' are all zero; train again, or copy the file again.")


def weights_digest(run: Path) -> str:
    """SHA-256 of the weights of a run, in hexadecimal: by it later stages say which weights they are of.

    Raises:
        UserError: the run has no weights.
    """
    try:
        return digest(run / WEIGHTS)
    except OSError as error:
        raise UserError(
            f"Weights '{run / WEIGHTS}' cannot be read ({error.strerror}); train again or copy the run again."
        ) from None


def check_digests(run: Path, stated: Mapping[str, str], remedy: str) -> None:
    """Refuse what later stages made of other weights than the run has now.

    Args:
        run: the run folder.
        stated: the digest that each file names, by what the sentence calls the file; empty if it names none,
            such as a file made by hand.
        remedy: what to do, for the end of the sentence.

    Raises:
        UserError: one is of other weights.
    """
    named = set(stated.values()) - {""}
    # The weights are read once for all files, since that takes a second if they are large.
    others = named - {weights_digest(run)} if named else set()
    for what, named_digest in stated.items():
        if named_digest in others:
            raise UserError(f"{what} is of other weights than run '{run}' has now; {remedy}.")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write everything that a resumed run needs.

    It is one file, so that a process that is killed at any moment leaves the last complete state.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of these; `load_state` reads nothing else.

    Raises:
        UserError: the disk is full.
    """
    with atomic(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            reason = str(error).splitlines()[0]
            raise UserError(
                f"Resume state '{path}' cannot be written ({reason}); free some space. The last checkpoint "
                "stays."
            ) from None


def keep_checkpoint(run: Path, epoch: int, keep: int, best: bool, resumed: bool) -> None:
    """Keep state.pt and the weights under names of their own in checkpoints/, beside the last few.

    Args:
        run: the run folder, whose checkpoint was just written.
        epoch: how many epochs are done.
        keep: how many such checkpoints stay.
        best: whether no epoch before was better.
        resumed: whether to do nothing if it was kept before the process was killed.
    """
    folder, last = run / "checkpoints", f"epoch-{epoch:04}"
    # Whether a kill came too early shows in the name that is given last. By the next start the weights may be
    # those of a later epoch already, whose state was not written.
    if resumed and (folder / f"{last}.pt").exists():
        return
    for suffix in (".pt", ".safetensors"):
        others = [path for path in sorted(folder.glob(f"epoch-*{suffix}")) if path.stem != last]
        for old in others[: max(len(others) - keep + 1, 0)]:
            old.unlink()
    for name in ["best"] * best + [last]:
        for file, suffix in ((run / WEIGHTS, ".safetensors"), (run / "state.pt", ".pt")):
            if file.exists():
                _link(file, folder / f"{name}{suffix}")


def _link(file: Path, name: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    # A link costs no space and no time: both names are of the same bytes, which are never changed in place.
    with atomic(name) as temporary:
        temporary.unlink()
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state that `save_state` wrote; all its tensors are on CPU.

    Raises:
        UserError: the file is damaged.
    """
    try:
        # On CPU: `load_state_dict` brings tensors to their device, and Adam wants its step counts on the CPU.
        # With weights_only no code in the file runs.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's reader has no common class of errors: a damaged file makes it raise whatever it meets.
        raise UserError(
            f"Resume state '{path}' cannot be loaded ({type(error).__name__}); start again with --overwrite."
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"Resume state '{path}' holds no state; start again with --overwrite.")
    return state
