"""What a search on NAS-Bench-201 must beat: the oracle, random search and regularised evolution.

Regularised evolution is Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search"
(arXiv:1802.01548, Algorithm 1), with the settings of NAS-Bench-201's own runs: population 10, tournaments of
3 drawn with replacement, and a mutation that draws a node, then one of its edges, then another operation. A
run ends with the best cell that it asked about. A budget counts queries, and a cell asked twice counts twice;
published runs stop by simulated seconds, which CSV tables do not hold.

All runs advance together: 500 of them at 100 queries take hundredths of a second.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.seed import numpy_generator
from oneshot.nasbench201.codes import CELLS, CHOICES, all_codes, index_of
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.spaces.costs import CostKind
from oneshot.spaces.nasbench201_string import SPACE

# Of regularised evolution, as in the runs of NAS-Bench-201.
POPULATION, TOURNAMENT = 10, 3
RUNS = 500
COUNTS: tuple[CostKind, ...] = ("macs", "params")
Indices = NDArray[np.int64]
Accuracies = NDArray[np.float64]


def random_search(seen_L: Accuracies, budget: int, runs: int, rng: np.random.Generator) -> Indices:
    """(runs,) indices of the best of `budget` uniform cells, by the accuracies that the searcher sees."""
    asked_RB = rng.integers(CELLS, size=(runs, budget))
    return asked_RB[np.arange(runs), seen_L[asked_RB].argmax(1)]


def regularised_evolution(seen_L: Accuracies, budget: int, runs: int, rng: np.random.Generator) -> Indices:
    """(runs,) indices of the best cell that each evolution asked about."""
    # A budget below the population is spent on the first cells.
    population = min(POPULATION, budget)
    run = np.arange(runs)
    alive_RP = rng.integers(CELLS, size=(runs, population))
    best_R = alive_RP[run, seen_L[alive_RP].argmax(1)]
    # Each step asks about one cell of every run.
    for step in range(budget - population):
        drawn_RT = alive_RP[run[:, None], rng.integers(population, size=(runs, TOURNAMENT))]
        parent_R = drawn_RT[run, seen_L[drawn_RT].argmax(1)]
        # The parent stays: only age removes a cell.
        child_R = mutate_cells(parent_R, rng)
        alive_RP[:, step % population] = child_R  # the oldest dies
        best_R = np.where(seen_L[child_R] > seen_L[best_R], child_R, best_R)
    return best_R


def mutate_cells(parent_R: Indices, rng: np.random.Generator) -> Indices:
    """Each cell with another operation on one edge."""
    node_R = rng.integers(SPACE.nodes, size=len(parent_R))
    first_N = np.array([into.start for into in SPACE.entering])
    stop_N = np.array([into.stop for into in SPACE.entering])
    edge_R = rng.integers(first_N[node_R], stop_N[node_R])
    codes = all_codes()[parent_R]
    run = np.arange(len(parent_R))
    # 1 to 4 further on, modulo 5: any operation but the one that was there.
    codes[run, edge_R] = (codes[run, edge_R] + rng.integers(1, CHOICES, size=len(parent_R))) % CHOICES
    return index_of(codes)


def baselines(
    table: AccuracyTable,
    dataset: Dataset,
    budget: int,
    seed: int,
    runs: int = RUNS,
    seen: AccuracyTable | None = None,
) -> dict[str, Accuracies]:
    """Test accuracies (%) of what each baseline ends with, one for each run; the oracle has one.

    The searcher sees the validation accuracies of `seen`, or of `table` if `seen` is not given. If that table
    has no validation accuracies, it sees test accuracies, which makes its results too good (`sees` tells
    which ones it sees).
    """
    seen = seen or table
    seen_L = seen.accuracies(dataset, sees(seen, dataset))
    result_L = table.accuracies(dataset)
    random_R = random_search(seen_L, budget, runs, numpy_generator(seed, "random search"))
    evolved_R = regularised_evolution(seen_L, budget, runs, numpy_generator(seed, "evolution"))
    return {
        "oracle": result_L.max(keepdims=True),
        "random_search": result_L[random_R],
        "regularised_evolution": result_L[evolved_R],
    }


def sees(table: AccuracyTable, dataset: Dataset) -> Literal["val", "test"]:
    """Which accuracies a searcher sees: validation where the table has them."""
    return "val" if (dataset, "val") in table.columns else "test"


def reference_lines(
    table: AccuracyTable, dataset: Dataset, budget: int, seed: int, seen: AccuracyTable | None = None
) -> dict[str, float]:
    """Mean test accuracy (%) of each baseline: lines in a plot of a search's true accuracy."""
    found = baselines(table, dataset, budget, seed, seen=seen)
    return {name: float(values.mean()) for name, values in found.items()}
