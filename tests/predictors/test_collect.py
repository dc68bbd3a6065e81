"""Collecting in rounds, on a trained run."""

import shutil
from pathlib import Path

import pytest

from engine.command.cli import parse
from ofa.cost import costs_of
from ofa.space.codes import decode
from ofa.space.space import Space
from predictors.accuracy.pairs import Pair, pairs_path, read_pairs
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


@pytest.mark.slow
def test_interrupted_rounds_end_as_if_they_had_not_been(fresh: Path) -> None:
    collect(fresh, 42, 2)
    path = pairs_path(fresh)
    complete = path.read_text()
    pairs = read_pairs(fresh)
    assert len({pair.arch for pair in pairs}) == len(pairs) == 42
    for kept in (12, 33, 39):
        lines = complete.splitlines(keepends=True)
        path.write_text("".join(lines[:kept]) + lines[kept][:20])  # as a killed process leaves it
        collect(fresh, 42, 2)
        assert path.read_text() == complete
    collect(fresh, 42, 2)
    assert path.read_text() == complete


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
    for row in to_measure(tiny, lambda rows: costs_of(tiny, rows, 10, 1).macs, pairs, tiny.size() + 10, 2, 0):
        pairs.append(Pair(arch=decode(tiny, row), val_accuracy=row.sum() / 255, macs=1, params=1))
    assert len({pair.arch for pair in pairs}) == len(pairs) == tiny.size()
