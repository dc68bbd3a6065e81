"""What a search on NAS-Bench-201 must beat: the oracle, and random search and regularised evolution at the same number of queries.

Regularised evolution is Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search" (arXiv:1802.01548,
Algorithm 1), with the settings of NAS-Bench-201's own runs: population 10, tournaments of 3 drawn with replacement, and a mutation
that draws a node, then one of its edges, then another operation. A run ends with the best cell that it asked about. A budget counts
queries, and a cell asked twice counts twice; published runs stop by simulated seconds, which CSV tables do not hold.

All runs advance together: 500 of them at 100 queries take hundredths of a second.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.table import Table as Grid

from engine.cli import Command
from engine.errors import UserError
from engine.seed import numpy_generator
from oneshot.benchmark import (
    CELLS,
    CHOICES,
    DATASETS,
    NETWORKS,
    SPACE,
    Dataset,
    Table,
    all_codes,
    all_costs,
    encode,
    find_cell,
    index_of,
    to_string,
)
from oneshot.costs import Count

POPULATION, TOURNAMENT, RUNS = 10, 3, 500
COUNTS: tuple[Count, ...] = ("macs", "params")
Indices = NDArray[np.int64]
Accuracies = NDArray[np.float64]


def random_search(seen_L: Accuracies, budget: int, runs: int, rng: np.random.Generator) -> Indices:
    """(runs,) indices of the best of `budget` uniform cells, by what the searcher sees."""
    asked_RB = rng.integers(CELLS, size=(runs, budget))
    return asked_RB[np.arange(runs), seen_L[asked_RB].argmax(1)]


def regularised_evolution(seen_L: Accuracies, budget: int, runs: int, rng: np.random.Generator) -> Indices:
    """(runs,) indices of the best cell that each evolution asked about."""
    population = min(POPULATION, budget)
    run = np.arange(runs)
    alive_RP = rng.integers(CELLS, size=(runs, population))
    best_R = alive_RP[run, seen_L[alive_RP].argmax(1)]
    for step in range(budget - population):
        drawn_RT = alive_RP[run[:, None], rng.integers(population, size=(runs, TOURNAMENT))]
        parent_R = drawn_RT[run, seen_L[drawn_RT].argmax(1)]
        child_R = mutate(parent_R, rng)
        alive_RP[:, step % population] = child_R  # the oldest dies
        best_R = np.where(seen_L[child_R] > seen_L[best_R], child_R, best_R)
    return best_R


def mutate(parent_R: Indices, rng: np.random.Generator) -> Indices:
    """Each cell with another operation on one edge."""
    node_R = rng.integers(SPACE.nodes, size=len(parent_R))
    first_N, stop_N = (np.array([getattr(part, end) for part in SPACE.entering]) for end in ("start", "stop"))
    edge_R = rng.integers(first_N[node_R], stop_N[node_R])
    codes = all_codes()[parent_R]
    run = np.arange(len(parent_R))
    codes[run, edge_R] = (codes[run, edge_R] + rng.integers(1, CHOICES, size=len(parent_R))) % CHOICES
    return index_of(codes)


def baselines(table: Table, dataset: Dataset, budget: int, seed: int, runs: int = RUNS, seen: Table | None = None) -> dict[str, Accuracies]:
    """Test accuracies (%) of what each baseline ends with, one for each run; the oracle has one.

    The searcher sees validation accuracies of `seen`, or of `table` where none is given; test accuracies, which flatters it, where
    a table has no others (`sees` tells which).
    """
    split = sees(seen or table, dataset)
    seen_L, result_L = (seen or table).accuracies(dataset, split), table.accuracies(dataset)
    return {
        "oracle": result_L.max(keepdims=True),
        "random_search": result_L[random_search(seen_L, budget, runs, numpy_generator(seed, "random search"))],
        "regularised_evolution": result_L[regularised_evolution(seen_L, budget, runs, numpy_generator(seed, "evolution"))],
    }


def sees(table: Table, dataset: Dataset) -> Literal["val", "test"]:
    """Which accuracies a searcher sees: validation where the table has them."""
    return "val" if (dataset, "val") in table.columns else "test"


def reference_lines(table: Table, dataset: Dataset, budget: int, seed: int, seen: Table | None = None) -> dict[str, float]:
    """Mean test accuracy (%) of each baseline: lines in a plot of a search's true accuracy."""
    return {name: float(values.mean()) for name, values in baselines(table, dataset, budget, seed, seen=seen).items()}


class Compare(Command):
    """Print what the oracle, random search and regularised evolution reach on a NAS-Bench-201 table, or look one cell up.

    A table is a CSV file with a column arch and columns such as cifar10-val and cifar10-test, or NATS-Bench's archive. Searchers see
    validation accuracies where there are any, and are judged by test accuracies. FLOPs means multiply-accumulates (MACs).

    examples:
      python -m oneshot.benchmark --table accuracy_200_epochs.csv --seen accuracy_12_epochs.csv --budget 100
      python -m oneshot.benchmark --table accuracy_200_epochs.csv --cell 9930
      python -m oneshot.benchmark --table NATS-tss-v1_0-3ffb9-simple --save table.csv
    """

    table: Path = Field(description="results: a CSV file, a folder NATS-tss-...-simple or a file NATS-tss-....pickle.pbz2")
    seen: Path | None = Field(None, description="table that searchers see instead, such as one after 12 epochs; of an archive, those")
    epochs: Literal[12, 200] = Field(200, description="which training of a NATS-Bench archive")
    budget: int = Field(100, ge=1, le=CELLS, description="cells that a searcher may ask about")
    runs: int = Field(RUNS, ge=2, description="runs of each searcher")
    seed: int = Field(0, ge=0, description="of the searchers")
    cell: str | None = Field(None, description="instead: the results and costs of this cell; an index, a string or a genotype file")
    save: Path | None = Field(None, description="write the table as a CSV file, which is faster to read")

    def execute(self) -> int:
        """Read, print, say what is next."""
        if self.save and self.save.suffix != ".csv":
            raise UserError(f"--save '{self.save}' must end in .csv.")
        table = Table.read(self.table, self.epochs)
        seen = Table.read(self.seen, 12) if self.seen else None
        if self.save:
            table.write(self.save)
            print(f"written to {self.save}")
        grid = _look_up(table, self.cell) if self.cell else self._compare(table, seen)
        Console().print(grid)
        print(f"next: python -m oneshot.search --method darts --space nasbench201 --table {self.save or self.table}")
        return 0

    def _compare(self, table: Table, seen: Table | None) -> Grid:
        print(f"test accuracy (%) in {self.table} of what {self.runs} runs of each searcher chose, seed {self.seed}")
        print(f"searchers see {self.budget:,} of {CELLS:,} cells, by the accuracies in {self.seen or self.table}")
        grid = Grid("data set", "searcher", "sees", "mean", "worst", "best")
        for dataset in (dataset for dataset in DATASETS if (dataset, "test") in table.columns):
            for name, values in baselines(table, dataset, self.budget, self.seed, self.runs, seen).items():
                if name == "oracle":
                    grid.add_row(dataset, name, "all", f"{values[0]:.2f}")
                    continue
                mean, split = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}", sees(seen or table, dataset)
                grid.add_row(dataset, name.replace("_", " "), split, mean, f"{values.min():.2f}", f"{values.max():.2f}")
        return grid


def _look_up(table: Table, cell: str) -> Grid:
    genotype = find_cell(cell)
    index = int(index_of(encode(genotype)))
    print(f"cell {index}: {to_string(genotype)}")
    grid = Grid("data set", "accuracy", "MACs", "parameters")
    for (dataset, split), values in sorted(table.columns.items()):
        costs = (f"{all_costs(count, NETWORKS[dataset])[index]:,}" for count in COUNTS)
        grid.add_row(f"{dataset} {split}", f"{values[index]:.2f}", *costs)
    return grid
