"""`python -m oneshot.benchmark`: what searchers reach on NAS-Bench-201, and what is known about a cell."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.table import Table as Grid

from engine.command.cli import Command, main
from engine.command.start import say
from engine.command.table import plain_console
from engine.errors import UserError
from oneshot.nasbench201.baselines import COUNTS, RUNS, baselines, sees
from oneshot.nasbench201.codes import CELLS, all_costs, encode_cell, find_cell, index_of, to_string
from oneshot.nasbench201.table import DATASETS, NETWORKS, AccuracyTable


class Compare(Command):
    """Print what the oracle, random search and regularised evolution reach on a NAS-Bench-201 table.

    With --cell look one cell up instead.

    A table is a CSV file with a column arch and columns such as cifar10-val and cifar10-test, or NATS-Bench's
    archive. Searchers see validation accuracies where there are any, and are judged by test accuracies. FLOPs
    means multiply-accumulates (MACs).

    examples:
      python -m oneshot.benchmark --table accuracy_200_epochs.csv --seen accuracy_12_epochs.csv --budget 100
      python -m oneshot.benchmark --table accuracy_200_epochs.csv --cell 9930
      python -m oneshot.benchmark --table NATS-tss-v1_0-3ffb9-simple --save table.csv
    """

    table: Path = Field(
        description="results: a CSV file, a folder NATS-tss-...-simple or a file NATS-tss-....pickle.pbz2"
    )
    seen: Path | None = Field(
        None,
        description="table that searchers see instead, such as one after 12 epochs; of an archive, those",
    )
    epochs: Literal[12, 200] = Field(200, description="which training of a NATS-Bench archive")
    budget: int = Field(100, ge=1, le=CELLS, description="cells that a searcher may ask about")
    runs: int = Field(RUNS, ge=2, description="runs of each searcher")
    seed: int = Field(0, ge=0, description="seed of the searchers")
    cell: str | None = Field(
        None, description="instead: the results and costs of this cell; an index, a string or a genotype file"
    )
    save: Path | None = Field(None, description="write the table as a CSV file, which is faster to read")

    def execute(self) -> int:
        """Read, print, say what is next."""
        if self.save and self.save.suffix != ".csv":
            raise UserError(f"--save '{self.save}' must end in .csv.")
        table = AccuracyTable.read(self.table, self.epochs)
        # Of an archive, searchers see the shorter of the two trainings.
        seen = AccuracyTable.read(self.seen, 12) if self.seen else None
        if self.save:
            table.write(self.save)
            print(f"written to {self.save}")
        grid = _look_up(table, self.cell) if self.cell else self._compare(table, seen)
        plain_console().print(grid)
        say(
            "next: python -m oneshot.search --method darts --space nasbench201 --table "
            f"{self.save or self.table}"
        )
        return 0

    def _compare(self, table: AccuracyTable, seen: AccuracyTable | None) -> Grid:
        print(
            f"test accuracy (%) in {self.table} of what {self.runs} runs of each searcher chose, seed "
            f"{self.seed}"
        )
        print(
            f"searchers see {self.budget:,} of {CELLS:,} cells, by the accuracies in "
            f"{self.seen or self.table}"
        )
        grid = Grid("data set", "searcher", "sees", "mean", "worst", "best")
        for dataset in DATASETS:
            if (dataset, "test") not in table.columns:
                continue
            split = sees(seen or table, dataset)
            for name, values in baselines(table, dataset, self.budget, self.seed, self.runs, seen).items():
                # The oracle asks about all cells, so it has one run and no spread.
                if name == "oracle":
                    grid.add_row(dataset, name, "all", f"{values[0]:.2f}")
                    continue
                mean = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
                worst, best = f"{values.min():.2f}", f"{values.max():.2f}"
                grid.add_row(dataset, name.replace("_", " "), split, mean, worst, best)
        return grid


def _look_up(table: AccuracyTable, cell: str) -> Grid:
    """What the table holds of one cell, and what its networks cost."""
    genotype = find_cell(cell)
    index = int(index_of(encode_cell(genotype)))
    print(f"cell {index}: {to_string(genotype)}")
    grid = Grid("data set", "accuracy", "MACs", "parameters")
    for (dataset, split), values in sorted(table.columns.items()):
        costs = [f"{all_costs(kind, NETWORKS[dataset])[index]:,}" for kind in COUNTS]
        grid.add_row(f"{dataset} {split}", f"{values[index]:.2f}", *costs)
    return grid


if __name__ == "__main__":
    main(Compare)
