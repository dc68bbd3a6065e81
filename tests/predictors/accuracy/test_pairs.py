"""Pairs of another supernet, or that nobody can have measured, are refused with their line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from ofa.space.arch import largest
from ofa.trained import TrainedSupernet
from predictors.accuracy.pairs import check_pairs, pairs_path, read_pairs


@pytest.fixture
def trained(trained_run: Path, tmp_path: Path) -> TrainedSupernet:
    left_out = shutil.ignore_patterns("selected", "export", "report", "pairs.jsonl")
    run = shutil.copytree(trained_run, tmp_path / "run", ignore=left_out)
    return TrainedSupernet(Path(run), torch.device("cpu"))


def pair(trained: TrainedSupernet, **changed: Any) -> dict[str, Any]:
    arch = largest(trained.space)
    macs, params = trained.cost(arch)
    values = {"arch": arch.model_dump(mode="json"), "val_accuracy": 0.5, "macs": macs, "params": params}
    return values | changed


def read(trained: TrainedSupernet, *rows: dict[str, Any]) -> None:
    path = pairs_path(trained.run.path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_pairs(read_pairs(trained.run.path), trained)


def test_pairs_of_this_supernet(trained: TrainedSupernet) -> None:
    read(trained)
    read(trained, pair(trained), pair(trained))


@pytest.mark.parametrize("macs", [-5, 0, 1.5, float("nan"), None])
def test_macs_that_no_network_has(trained: TrainedSupernet, macs: Any) -> None:
    with pytest.raises(UserError, match=r"line 2: .*macs"):
        read(trained, pair(trained), pair(trained, macs=macs))


def test_macs_of_another_network(trained: TrainedSupernet) -> None:
    good = pair(trained)
    with pytest.raises(UserError, match=rf"pair 1: macs = {good['macs'] + 1}, but this architecture has"):
        read(trained, good | {"macs": good["macs"] + 1})


def test_architectures_of_another_space(trained: TrainedSupernet) -> None:
    good = pair(trained)
    with pytest.raises(UserError, match=r"pair 1: resolution = 9 is not in space"):
        read(trained, good | {"arch": good["arch"] | {"resolution": 9}})
