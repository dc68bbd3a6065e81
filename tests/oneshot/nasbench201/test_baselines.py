"""Random search and regularised evolution on a table."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest

from engine.command.cli import parse
from oneshot.nasbench201.__main__ import Compare
from oneshot.nasbench201.baselines import (
    baselines,
    mutate_cells,
    random_search,
    reference_lines,
    regularised_evolution,
)
from oneshot.nasbench201.codes import CELLS, all_codes
from oneshot.nasbench201.table import DATASETS, AccuracyTable
from oneshot.spaces.nasbench201_string import SPACE


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """Accuracies that evolution can climb: the share of 3x3 convolutions, told apart by a little noise."""
    return (all_codes() == 3).mean(1) * 90 + np.random.default_rng(0).uniform(0, 1, CELLS)


def test_a_mutation_changes_one_edge_as_the_reference_does() -> None:
    parents = np.full(60_000, 777)
    changed = all_codes()[mutate_cells(parents, np.random.default_rng(0))] != all_codes()[777]
    assert (changed.sum(1) == 1).all()
    assert changed.mean(0) == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9], abs=0.01)
    children = all_codes()[mutate_cells(parents, np.random.default_rng(1))][:, 0]
    counts = np.bincount(children, minlength=len(SPACE.operations)) / 60_000
    others = [o for o in range(5) if o != all_codes()[777, 0]]
    assert counts[others] == pytest.approx([1 / 12] * 4, abs=0.01)


def test_random_search_is_the_best_of_uniform_cells(smooth: np.ndarray) -> None:
    rank = smooth.argsort().argsort() / CELLS  # uniform on 0 to 1, so the best of n has mean n / (n + 1)
    found = rank[random_search(smooth, 20, 4000, np.random.default_rng(0))]
    assert found.mean() == pytest.approx(20 / 21, abs=0.004)


def one_evolution(seen: np.ndarray, budget: int, rng: np.random.Generator) -> int:
    """The algorithm of the paper, one run, as plainly as it can be written."""
    population = deque(int(cell) for cell in rng.integers(CELLS, size=10))
    history = list(population)
    while len(history) < budget:
        parent = max((population[i] for i in rng.integers(10, size=3)), key=lambda cell: seen[cell])
        child = int(mutate_cells(np.array([parent]), rng)[0])
        population.append(child)
        population.popleft()
        history.append(child)
    return max(history, key=lambda cell: seen[cell])


def test_evolution_is_that_of_the_paper(smooth: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    plain = smooth[[one_evolution(smooth, 60, rng) for _ in range(400)]]
    merged = smooth[regularised_evolution(smooth, 60, 4000, np.random.default_rng(1))]
    error = np.hypot(plain.std() / 20, merged.std() / 4000**0.5)
    assert abs(plain.mean() - merged.mean()) < 4 * error
    assert merged.mean() > smooth[random_search(smooth, 60, 4000, rng)].mean() + 5


def test_one_query_is_one_random_cell(smooth: np.ndarray) -> None:
    found = regularised_evolution(smooth, 1, 2000, np.random.default_rng(0))
    assert smooth[found].mean() == pytest.approx(smooth.mean(), abs=1.5)


def test_searchers_see_validation_and_are_judged_by_test(smooth: np.ndarray) -> None:
    table = AccuracyTable("made up", {("cifar10", "test"): smooth, ("cifar10", "val"): 100 - smooth})
    found = baselines(table, "cifar10", 100, 0)
    assert found["oracle"] == smooth.max()
    assert found["random_search"].mean() < smooth.mean()  # validation misleads in this table
    honest = baselines(
        table, "cifar10", 100, 0, seen=AccuracyTable("test alone", {("cifar10", "test"): smooth})
    )
    assert honest["regularised_evolution"].mean() > smooth.mean()


def test_the_lines_are_means_and_come_again_with_the_seed(smooth: np.ndarray) -> None:
    table = AccuracyTable("made up", {("cifar10", "test"): smooth})
    lines = reference_lines(table, "cifar10", 30, 5)
    assert lines == reference_lines(table, "cifar10", 30, 5)
    assert lines["random_search"] != reference_lines(table, "cifar10", 30, 6)["random_search"]
    assert lines["random_search"] == baselines(table, "cifar10", 30, 5)["random_search"].mean()
    assert lines["random_search"] < lines["regularised_evolution"] < lines["oracle"] == smooth.max()


@pytest.mark.slow
def test_on_the_real_tables(nas_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random search against its exact expectation: the cell of rank k is the best of n draws with probability
    (k/C)^n - ((k-1)/C)^n."""
    files = [nas_data / "nasbench201" / f"accuracy_{epochs}_epochs.csv" for epochs in (200, 12)]
    result, seen = (AccuracyTable.read(file) for file in files)
    below = np.arange(CELLS + 1) / CELLS
    chance = np.diff(below**100)
    for dataset in DATASETS:
        found = baselines(result, dataset, 100, 0, seen=seen)
        exact = chance @ result.accuracies(dataset)[seen.accuracies(dataset, "val").argsort(kind="stable")]
        assert found["random_search"].mean() == pytest.approx(
            exact, abs=4 * found["random_search"].std() / 500**0.5
        )
        assert found["regularised_evolution"].mean() > found["random_search"].mean()
    assert (
        parse(Compare, ["--table", str(files[0]), "--seen", str(files[1]), "--budget", "100"]).execute() == 0
    )
    printed = capsys.readouterr().out
    assert (
        "regularised evolution" in printed
        and "94.37" in printed
        and "next: python -m oneshot.search" in printed
    )
