"""Weights that are not worth loading, and files of which nothing runs."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_state, load_weights, save_state, save_weights
from engine.errors import UserError


class Program:
    """What a pickle may ask for: here a folder, but it could be anything."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2, 2), "b": torch.tensor([1.0, value])})
    with pytest.raises(UserError, match="NaN or infinity, first in b"):
        load_weights(path)


def test_weights_that_are_all_zero(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.zeros(2, 2), "b": torch.zeros(3, 3), "variance": torch.ones(2)})
    with pytest.raises(UserError, match="all zero"):
        load_weights(path)
    # A bias of zeros is in order, and so is one matrix of zeros among others.
    save_weights(path, {"a": torch.zeros(2, 2), "b": torch.ones(3, 3), "bias": torch.zeros(2)})
    assert set(load_weights(path)) == {"a", "b", "bias"}


def test_no_program_in_a_state_runs(tmp_path: Path) -> None:
    path, place = tmp_path / "state.pt", tmp_path / "made"
    save_state(path, {"step": 1})
    assert load_state(path) == {"step": 1}
    torch.save({"step": Program(place)}, path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_state(path)
    path.write_bytes(pickle.dumps(Program(place), protocol=2))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_state(path)
    assert not place.exists()
