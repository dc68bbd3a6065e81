"""NAS-Bench-201 as a look-up (Dong and Yang 2020, "NAS-Bench-201: Extending the Scope of Reproducible Neural
Architecture Search", arXiv:2001.00326): every cell of the space by string, by code and by its official index,
and the accuracies that tables hold.

A code is the operation of each of the six edges, in the order of the space's edges and operations. The
official index has a closed rule: the 15,625 codes in lexicographic order, shuffled by Python's generator with
seed 88. So strings, codes and indices need no table. Isomorphic cells (6,466 are different) were trained each
on its own, so they are kept apart here: a table has 15,625 results.
"""

import csv
import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError, nearest
from engine.run import atomic
from oneshot.nasbench201.nats import ARCHIVE, read_nats
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import NASBENCH201, Count, Counts, Shape, edge_costs
from oneshot.spaces.genotype import Cell, Genotype, find_genotype

SPACE = find_space("nasbench201")
EDGES, CHOICES = len(SPACE.edges), len(SPACE.operations)
CELLS = CHOICES**EDGES
PLACES = CHOICES ** np.arange(EDGES)[::-1]  # the value of each digit of a code
ARCH_COLUMNS = ("arch", "architecturestring")
COLUMN = re.compile(r"(cifar100|cifar10|imagenet(?:16-120)?)[-_ ]?(test|val)", re.IGNORECASE)

Dataset = Literal["cifar10", "cifar100", "imagenet16-120"]
Split = Literal["val", "test"]
Codes = NDArray[np.int64]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
NETWORKS: dict[Dataset, Shape] = {  # those that the benchmark trained
    "cifar10": NASBENCH201,
    "cifar100": NASBENCH201._replace(classes=100),
    "imagenet16-120": NASBENCH201._replace(classes=120, size=16),
}


@cache
def all_codes() -> Codes:
    """(15625, 6) codes; row i is the official index i. Read-only."""
    order = list(product(range(CHOICES), repeat=EDGES))
    random.Random(88).shuffle(order)
    codes = np.array(order)
    codes.setflags(write=False)
    return codes


@cache
def _index_by_number() -> NDArray[np.int64]:
    index = np.empty(CELLS, np.int64)
    index[all_codes() @ PLACES] = np.arange(CELLS)
    return index


def index_of(codes_N6: Codes) -> NDArray[np.int64]:
    """(N,) official indices of codes (N, 6)."""
    return _index_by_number()[codes_N6 @ PLACES]


def all_costs(count: Count, shape: Shape = NASBENCH201) -> Counts:
    """(15625,) MACs or parameters of every cell's network, in the order of official indices."""
    costs = edge_costs(SPACE, count, shape)
    return costs.constant + costs.edges["cell"][np.arange(EDGES), all_codes()].sum(1)


def encode(genotype: Genotype) -> Codes:
    """(6,) code of a cell. An edge that the genotype does not name carries nothing.

    Raises:
        UserError: it is of another space, an edge is named twice, or the output is not the last node alone.
    """
    if genotype.space != SPACE.name:
        raise UserError(
            f"The genotype is of space '{genotype.space}', but a NAS-Bench-201 table is about space "
            f"'{SPACE.name}'."
        )
    cell = genotype.cells["cell"]
    if cell.output != (SPACE.nodes,) or len(cell.nodes) != SPACE.nodes:
        raise UserError(
            f"A cell of NAS-Bench-201 has {SPACE.nodes} nodes and returns the last, not {list(cell.output)}."
        )
    code = np.zeros(EDGES, np.int64)
    named = [
        ((source, target), name) for target, edges in enumerate(cell.nodes, start=1) for name, source in edges
    ]
    if len({edge for edge, _ in named}) < len(named):
        raise UserError(
            "A cell of NAS-Bench-201 has one operation on each edge, but the genotype names an edge twice."
        )
    for edge, name in named:
        code[SPACE.edges.index(edge)] = SPACE.operations.index(name)
    return code


def decode(code_6: Codes) -> Genotype:
    """The cell of a code, all its six edges named."""
    edges = [
        (SPACE.operations[choice], source) for choice, (source, _) in zip(code_6, SPACE.edges, strict=True)
    ]
    nodes = tuple(tuple(edges[part]) for part in SPACE.entering)
    return Genotype(space=SPACE.name, cells={"cell": Cell(nodes=nodes, output=(SPACE.nodes,))})


def to_string(genotype: Genotype) -> str:
    """As the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    nodes = decode(encode(genotype)).cells["cell"].nodes
    return "+".join("|" + "".join(f"{name}~{source}|" for name, source in edges) for edges in nodes)


def parse_string(text: str) -> Codes:
    """(6,) code of a string such as `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

    Raises:
        UserError: it has another form or names an operation that the space has not.
    """
    parts = re.findall(r"([^|~+]+)~(\d)", text)
    if [int(source) for _, source in parts] != [source for source, _ in SPACE.edges] or text.count(
        "+"
    ) != SPACE.nodes - 1:
        raise UserError(f"'{text}' is not a cell; write it as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.")
    for name, _ in parts:
        if name not in SPACE.operations:
            raise UserError(
                f"'{name}' in '{text}' is not an operation of NAS-Bench-201; "
                f"{nearest(name, SPACE.operations)}"
            )
    return np.array([SPACE.operations.index(name) for name, _ in parts])


def find_cell(text: str) -> Genotype:
    """The cell that is meant: an official index, or whatever `find_genotype` reads."""
    if text.isdecimal():
        if int(text) >= CELLS:
            raise UserError(f"There is no cell {text}; indices go from 0 to {CELLS - 1}.")
        return decode(all_codes()[int(text)])
    return find_genotype(text)


class Best(NamedTuple):
    """The most accurate cell of a table. cell: its official index; accuracy: in percent."""

    cell: int
    genotype: Genotype
    accuracy: float


@dataclass(frozen=True)
class Table:
    """Accuracies of every cell.

    Args:
        source: the file, for messages.
        columns: percent by data set and split, (15625,), in the order of official indices.
    """

    source: str
    columns: dict[tuple[Dataset, Split], NDArray[np.float64]]

    @classmethod
    def read(cls, path: Path, epochs: Literal[12, 200] = 200) -> "Table":
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
        columns: dict[tuple[Dataset, Split], NDArray[np.float64]] = {}
        for name, values in named.items():
            if (key := _meaning(name)) is None:
                continue
            if key in columns:
                raise UserError(
                    f"{path}: two columns hold the {key[1]} accuracy on {key[0]}, such as '{name}'; leave "
                    "one."
                )
            columns[key] = np.array(values)
            if not np.isfinite(columns[key]).all():
                raise UserError(
                    f"{path}: an accuracy in column '{name}' is missing or infinite; every cell needs one."
                )
        if not columns:
            raise UserError(
                f"{path} holds no accuracies; its columns must be named as cifar10-val, cifar10-test, and so "
                "on."
            )
        if len(set(cells)) != CELLS or len(cells) != CELLS:
            raise UserError(
                f"{path} holds {len(set(cells)):,} different cells in {len(cells):,} rows; a table has all "
                f"{CELLS:,} once."
            )
        order = np.argsort(index_of(np.array([parse_string(cell) for cell in cells])))
        return cls(str(path), {key: values[order] for key, values in columns.items()})

    def accuracies(self, dataset: Dataset, split: Split = "test") -> NDArray[np.float64]:
        """(15625,) percent, in the order of official indices.

        Raises:
            UserError: the table has none for that data set and split.
        """
        if (dataset, split) not in self.columns:
            known = ", ".join(f"{name} {part}" for name, part in sorted(self.columns))
            raise UserError(f"Table '{self.source}' has no {split} accuracy on '{dataset}'; it has {known}.")
        return self.columns[dataset, split]

    def accuracy(self, genotype: Genotype, dataset: Dataset, split: Split = "test") -> float:
        """Percent of one cell."""
        return float(self.accuracies(dataset, split)[index_of(encode(genotype))])

    def results(self, genotype: Genotype) -> dict[str, float]:
        """Percent of one cell on everything that the table has: `cifar10-test` and so on. What a search logs
        beside its losses."""
        index = index_of(encode(genotype))
        return {
            f"{dataset}-{split}": float(values[index]) for (dataset, split), values in self.columns.items()
        }

    def best(self, dataset: Dataset, split: Split = "test") -> Best:
        """The oracle's choice: the highest accuracy of all cells."""
        index = int(np.argmax(self.accuracies(dataset, split)))
        return Best(index, decode(all_codes()[index]), float(self.accuracies(dataset, split)[index]))

    def write(self, path: Path) -> None:
        """A CSV file that `read` reads back exactly."""
        with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "arch", *(f"{dataset}-{split}" for dataset, split in self.columns)])
            for index, code in enumerate(all_codes()):
                writer.writerow(
                    [
                        index,
                        to_string(decode(code)),
                        *(repr(float(values[index])) for values in self.columns.values()),
                    ]
                )


def _meaning(column: str) -> tuple[Dataset, Split] | None:
    """What a column holds, by its name."""
    match = COLUMN.match(column)
    if match is None:
        return None
    name = match[1].lower()
    dataset: Dataset = (
        "cifar10" if name == "cifar10" else "cifar100" if name == "cifar100" else "imagenet16-120"
    )
    return dataset, "test" if match[2].lower() == "test" else "val"


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
    short = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if short is not None:
        raise UserError(
            f"{path}, row {short} has not the {len(header)} fields of the first line; repair or remove it."
        )
    try:
        return [row[cell] for row in rows], {
            name: [float(row[i]) for row in rows]
            for i, name in enumerate(header)
            if _meaning(name) is not None
        }
    except ValueError as error:
        raise UserError(f"{path}: an accuracy is not a number ({error}).") from None
