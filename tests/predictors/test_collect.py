"""Collecting in rounds, on a trained run."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.checkpoint import weights_digest
from engine.command.cli import parse
from engine.errors import UserError
from engine.run import write_json
from engine.runs.lock import write_lock
from ofa.cost import costs_of
from ofa.space.arch import smallest
from ofa.space.codes import Codes, decode
from ofa.space.space import Space
from ofa.trained import TrainedSupernet
from ofa.tuned import selected_archs
from predictors.accuracy.ahead import ahead_path
from predictors.accuracy.pairs import Pair, pairs_path, read_pairs, read_selected
from predictors.collect import Collect, round_ends, to_measure


@pytest.fixture
def fresh(trained_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("pairs.jsonl", "selected", "report"))
    return copy


def collect(run: Path, count: int, rounds: int) -> None:
    assert parse(Collect, ["--run", str(run), "--count", str(count), "--rounds", str(rounds)]).execute() == 0


@pytest.mark.parametrize(
    ("count", "rounds", "ends"),
    [(200, 0, [200]), (120, 3, [30, 60, 90, 120]), (40, 9, None), (20, 2, [20, 20, 20])],
)
def test_rounds_end_where_the_count_says(count: int, rounds: int, ends: list[int] | None) -> None:
    found = round_ends(count, rounds)
    assert ends is None or found == ends
    assert found == sorted(found) and found[-1] == count and len(found) == rounds + 1


@pytest.fixture(scope="module")
def rounds_of_one(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """pairs.jsonl of an uninterrupted collection of 42 pairs in 2 rounds by one process."""
    copy = tmp_path_factory.mktemp("rounds") / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("pairs.jsonl", "selected", "report"))
    collect(copy, 42, 2)
    pairs = read_pairs(copy)
    assert len({pair.arch for pair in pairs}) == len(pairs) == 42
    return pairs_path(copy).read_text()


@pytest.mark.slow
def test_interrupted_rounds_end_as_if_they_had_not_been(fresh: Path, rounds_of_one: str) -> None:
    path = pairs_path(fresh)
    for kept in (12, 33, 39):
        lines = rounds_of_one.splitlines(keepends=True)
        path.write_text("".join(lines[:kept]) + lines[kept][:20])  # as a killed process leaves it
        collect(fresh, 42, 2)
        assert path.read_text() == rounds_of_one
    collect(fresh, 42, 2)
    assert path.read_text() == rounds_of_one


def _collect_of_two(run: Path, count: int) -> int:
    words = ["--run", str(run), "--count", str(count), "--rounds", "2", "--device", "cpu"]
    return parse(Collect, words).execute()


@pytest.mark.slow
def test_two_ranks_collect_what_one_process_does(
    pair: Callable[..., list[int]], fresh: Path, rounds_of_one: str
) -> None:
    path, lines = pairs_path(fresh), rounds_of_one.splitlines(keepends=True)
    # As killed ranks leave it: the second one had measured subnets whose turn was still to come. One of them
    # gets another accuracy here, which tells whether it is measured again.
    marked = json.loads(lines[25]) | {"val_accuracy": 0.125}
    path.write_text("".join(lines[:20]))
    ahead_path(fresh, "float32", 1).write_text(json.dumps(marked) + "\n" + lines[27] + lines[28][:20])
    assert pair(_collect_of_two, fresh, 30) == [0, 0]
    found = path.read_text().splitlines(keepends=True)
    assert found[:25] + found[26:] == lines[:25] + lines[26:30]
    assert json.loads(found[25]) == marked
    assert not list(fresh.glob("*ahead*"))

    path.write_text("".join(lines[:28]))
    assert pair(_collect_of_two, fresh, 42) == [0, 0]
    assert path.read_text() == rounds_of_one


@pytest.mark.slow
def test_rounds_go_on_from_random_pairs_and_choose_others(fresh: Path) -> None:
    collect(fresh, 36, 0)
    random = pairs_path(fresh).read_text()
    collect(fresh, 44, 2)
    chosen = [pair.arch for pair in read_pairs(fresh)]
    assert pairs_path(fresh).read_text().startswith(random)
    pairs_path(fresh).write_text(random)
    collect(fresh, 44, 0)
    assert len(set(chosen)) == 44
    assert chosen != [pair.arch for pair in read_pairs(fresh)]


@pytest.mark.slow
def test_rounds_end_with_all_of_a_small_space(tiny: Space) -> None:
    pairs: list[Pair] = []

    def macs(rows: Codes) -> NDArray[np.int64]:
        return costs_of(tiny, rows, 10, 1).macs

    for rows in to_measure(tiny, macs, pairs, tiny.size() + 10, 2, 0):
        for row in rows:
            pairs.append(Pair(arch=decode(tiny, row), val_accuracy=row.sum() / 255, macs=1, params=1))
    assert len({pair.arch for pair in pairs}) == len(pairs) == tiny.size()


def test_pairs_are_of_the_weights_and_of_one_writer(fresh: Path) -> None:
    collect(fresh, 2, 0)
    path = pairs_path(fresh)
    assert {pair.weights_sha256 for pair in read_pairs(fresh)} == {weights_digest(fresh)}
    written = path.read_text()
    with write_lock(fresh), pytest.raises(UserError, match="is being written by process"):
        collect(fresh, 3, 0)
    # Twice the same architecture, as two writers on a file system without locks would leave it.
    path.write_text(written + written)
    assert len(read_pairs(fresh)) == 2
    collect(fresh, 2, 0)
    assert path.read_text() == written
    # Pairs that were copied from another run.
    first = json.loads(written.splitlines()[0]) | {"weights_sha256": "0" * 64}
    path.write_text(json.dumps(first) + "\n")
    with pytest.raises(UserError, match=r"line 1 is of other weights .*\.collect --run .* --overwrite"):
        collect(fresh, 3, 0)
    assert parse(Collect, ["--run", str(fresh), "--count", "2", "--overwrite"]).execute() == 0
    assert path.read_text() == written


def test_selected_subnets_are_of_the_weights(fresh: Path) -> None:
    space = TrainedSupernet(fresh, torch.device("cpu")).space
    facts = {"arch": smallest(space).model_dump(mode="json"), "macs": 1, "val_accuracy": 0.5}
    for digest, said in (
        (weights_digest(fresh), None),
        ("0" * 64, r"1M.json is of other weights .*\.select"),
    ):
        write_json(fresh / "selected" / "1M.json", facts | {"weights_sha256": digest})
        for read in (partial(read_selected, fresh), partial(selected_archs, fresh, space, "all")):
            with pytest.raises(UserError, match=said) if said else nullcontext():
                read()
