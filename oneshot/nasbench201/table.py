"""Accuracies of NAS-Bench-201's cells, from a CSV file or an archive of NATS-Bench.

Isomorphic cells (6,466 are different) were trained each on its own, so they are kept apart here: a table has
15,625 results, in the order of official indices.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.runs.writing import atomic
from oneshot.nasbench201.codes import (
    CELLS,
    all_codes,
    decode_cell,
    encode_cell,
    index_of,
    parse_string,
    to_string,
)
from oneshot.nasbench201.nats import ARCHIVE, read_nats
from oneshot.spaces.costs import NASBENCH201, NetworkShape
from oneshot.spaces.genotype import Genotype

ARCH_COLUMNS = ("arch", "architecturestring")
COLUMN = re.compile(r"(cifar100|cifar10|imagenet(?:16-120)?)[-_ ]?(test|val)", re.IGNORECASE)

Dataset = Literal["cifar10", "cifar100", "imagenet16-120"]
TableSplit = Literal["val", "test"]
Columns = dict[tuple[Dataset, TableSplit], NDArray[np.float64]]  # percent by data set and split
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
NETWORKS: dict[Dataset, NetworkShape] = {  # those that the benchmark trained
    "cifar10": NASBENCH201,
    "cifar100": NASBENCH201._replace(classes=100),
    "imagenet16-120": NASBENCH201._replace(classes=120, size=16),
}


class BestCell(NamedTuple):
    """The most accurate cell of a table: its official index, its genotype and its accuracy in percent."""

    cell: int
    genotype: Genotype
    accuracy: float


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies of every cell.

    Args:
        source: the file, for messages.
        columns: percent by data set and split, (15625,), in the order of official indices.
    """

    source: str
    columns: Columns

    @classmethod
    def read(cls, path: Path, epochs: Literal[12, 200] = 200) -> "AccuracyTable":
        """A CSV file, or an archive of NATS-Bench, where `epochs` says which of its two trainings is meant.

        Of the CSV, the column `arch` or `ArchitectureString` names the cell; columns such as `cifar10-val`,
        `imagenet-test` or `CIFAR100TestAccuracy200Epochs` hold percent. Rows may be in any order; other
        columns are passed over.

        Raises:
            UserError: it cannot be read, lacks cells, or holds no accuracies.
        """
        if path.is_dir() or path.name.endswith(ARCHIVE):
            cells, named = read_nats(path, epochs)
        else:
            cells, named = _read_csv(path)
        columns = _accuracy_columns(path, named)
        if len(set(cells)) != CELLS or len(cells) != CELLS:
            raise UserError(
                f"{path} holds {len(set(cells)):,} different cells in {len(cells):,} rows; a table has all "
                f"{CELLS:,} once."
            )
        # Rows come in any order; columns are kept in that of official indices.
        order = np.argsort(index_of(np.array([parse_string(cell) for cell in cells])))
        return cls(str(path), {key: values[order] for key, values in columns.items()})

    def accuracies(self, dataset: Dataset, split: TableSplit = "test") -> NDArray[np.float64]:
        """(15625,) percent, in the order of official indices.

        Raises:
            UserError: the table has none for that data set and split.
        """
        if (dataset, split) not in self.columns:
            known = ", ".join(f"{name} {part}" for name, part in sorted(self.columns))
            raise UserError(f"Table '{self.source}' has no {split} accuracy on '{dataset}'; it has {known}.")
        return self.columns[dataset, split]

    def accuracy(self, genotype: Genotype, dataset: Dataset, split: TableSplit = "test") -> float:
        """Percent of one cell."""
        return float(self.accuracies(dataset, split)[index_of(encode_cell(genotype))])

    def results(self, genotype: Genotype) -> dict[str, float]:
        """Percent of one cell on everything that the table has: `cifar10-test` and so on."""
        index = index_of(encode_cell(genotype))
        named = {}
        for (dataset, split), values in self.columns.items():
            named[f"{dataset}-{split}"] = float(values[index])
        return named

    def best(self, dataset: Dataset, split: TableSplit = "test") -> BestCell:
        """The oracle's choice: the highest accuracy of all cells."""
        index = int(np.argmax(self.accuracies(dataset, split)))
        return BestCell(index, decode_cell(all_codes()[index]), float(self.accuracies(dataset, split)[index]))

    def write(self, path: Path) -> None:
        """A CSV file that `read` reads back exactly."""
        with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "arch", *(f"{dataset}-{split}" for dataset, split in self.columns)])
            for index, code in enumerate(all_codes()):
                accuracies = [repr(float(values[index])) for values in self.columns.values()]
                writer.writerow([index, to_string(decode_cell(code)), *accuracies])


def _accuracy_columns(path: Path, named: dict[str, list[float]]) -> Columns:
    """The columns whose names say that they are accuracies, in the order of the file's rows."""
    columns: Columns = {}
    for name, values in named.items():
        key = _meaning(name)
        if key is None:
            continue
        if key in columns:
            raise UserError(
                f"{path}: two columns hold the {key[1]} accuracy on {key[0]}, such as '{name}'; leave one."
            )
        columns[key] = np.array(values)
        # argmax would take nan for the best cell.
        if not np.isfinite(columns[key]).all():
            raise UserError(
                f"{path}: an accuracy in column '{name}' is missing or infinite; every cell needs one."
            )
    if not columns:
        raise UserError(
            f"{path} holds no accuracies; its columns must be named as cifar10-val, cifar10-test, and so on."
        )
    return columns


def _meaning(column: str) -> tuple[Dataset, TableSplit] | None:
    """What a column holds, by its name."""
    match = COLUMN.match(column)
    if match is None:
        return None
    name = match[1].lower()
    split: TableSplit = "test" if match[2].lower() == "test" else "val"
    for dataset in DATASETS:
        if name == dataset:
            return dataset, split
    return "imagenet16-120", split  # some tables call it imagenet


def _read_csv(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    """The cells of the rows, and the columns that hold accuracies."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(
            f"{path} is not a CSV file; give one with a column arch and columns such as cifar10-test."
        ) from None
    cell = next((i for i, name in enumerate(header) if name.lower() in ARCH_COLUMNS), None)
    if cell is None:
        raise UserError(
            f"{path} has no column arch or ArchitectureString; its first line must name the columns."
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {number} has not the {len(header)} fields of the first line; repair or remove "
                "it."
            )
    columns = {}
    try:
        for i, name in enumerate(header):
            # Other columns may hold text, such as the cell's.
            if _meaning(name) is not None:
                columns[name] = [float(row[i]) for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: an accuracy is not a number ({error}).") from None
    return [row[cell] for row in rows], columns
