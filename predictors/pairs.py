"""Measured subnets as data: the rows of pairs.jsonl."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.config import Config, validate
from engine.errors import UserError
from engine.run import read_lines
from ofa.space import Arch, Codes, Space, encode


class Pair(Config):
    """One measured subnet. val_accuracy in [0, 1]; macs: multiply-accumulates; params: trainable scalars."""

    arch: Arch
    val_accuracy: float
    macs: int
    params: int


def pairs_path(run: Path) -> Path:
    """Where a run keeps its pairs."""
    return run / "pairs.jsonl"


def read_pairs(run: Path) -> list[Pair]:
    """The pairs of a run; none if nothing was collected yet."""
    path = pairs_path(run)
    return [validate(Pair, row, f"{path}, line {i}") for i, row in enumerate(read_lines(path), start=1)]


def training_set(space: Space, pairs: list[Pair]) -> tuple[Codes, NDArray[np.float64]]:
    """(codes, accuracies) of the pairs.

    Raises:
        UserError: there are too few to learn from.
    """
    if len(pairs) < 10:
        raise UserError(f"Only {len(pairs)} subnets are measured, and a predictor needs at least 10; run python -m predictors.collect first.")
    return np.stack([encode(space, pair.arch) for pair in pairs]), np.array([pair.val_accuracy for pair in pairs])
