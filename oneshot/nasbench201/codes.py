"""NAS-Bench-201's cells by string, by code and by official index, without a table.

Dong and Yang 2020, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
arXiv:2001.00326. A code is the operation of each of the six edges, in the order of the space's edges and
operations. The official index has a closed rule: the 15,625 codes in lexicographic order, shuffled by
Python's generator with seed 88.
"""

import random
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError, shortened
from oneshot.spaces.costs import NASBENCH201, CostArray, CostKind, NetworkShape, edge_costs
from oneshot.spaces.genotype import Genotype
from oneshot.spaces.nasbench201_string import SPACE, genotype_of_operations, operations_of_string
from oneshot.spaces.read_genotype import find_genotype

EDGES, CHOICES = len(SPACE.edges), len(SPACE.operations)
CELLS = CHOICES**EDGES
PLACES = CHOICES ** np.arange(EDGES)[::-1]  # the value of each digit of a code

CellCodes = NDArray[np.int64]  # (..., 6)


@cache
def all_codes() -> CellCodes:
    """(15625, 6) codes; row i is the official index i. Read-only."""
    order = list(product(range(CHOICES), repeat=EDGES))
    # Python's own generator with this seed gives the order of the benchmark.
    random.Random(88).shuffle(order)
    codes = np.array(order)
    codes.setflags(write=False)
    return codes


@cache
def _index_by_number() -> NDArray[np.int64]:
    index = np.empty(CELLS, np.int64)
    # The number of a code is read as digits to the base 5.
    index[all_codes() @ PLACES] = np.arange(CELLS)
    return index


def index_of(codes_N6: CellCodes) -> NDArray[np.int64]:
    """(N,) official indices of codes (N, 6)."""
    return _index_by_number()[codes_N6 @ PLACES]


def all_costs(kind: CostKind, shape: NetworkShape = NASBENCH201) -> CostArray:
    """(15625,) MACs or parameters of every cell's network, in the order of official indices."""
    # All cells at once: each edge's operation picks its cost.
    costs = edge_costs(SPACE, kind, shape)
    return costs.constant + costs.edges["cell"][np.arange(EDGES), all_codes()].sum(1)


def encode_cell(genotype: Genotype) -> CellCodes:
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
    code = np.zeros(EDGES, np.int64)  # 0 is the operation none
    named = set()
    for target, edges in enumerate(cell.nodes, start=1):
        for name, source in edges:
            edge = SPACE.edges.index((source, target))
            if edge in named:
                raise UserError(
                    "A cell of NAS-Bench-201 has one operation on each edge, but the genotype names an edge "
                    "twice."
                )
            named.add(edge)
            code[edge] = SPACE.operations.index(name)
    return code


def decode_cell(code_6: CellCodes) -> Genotype:
    """The cell of a code, all its six edges named."""
    return genotype_of_operations([SPACE.operations[choice] for choice in code_6])


def to_string(genotype: Genotype) -> str:
    """As the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    nodes = []
    for edges in decode_cell(encode_cell(genotype)).cells["cell"].nodes:
        nodes.append("|" + "".join(f"{name}~{source}|" for name, source in edges))
    return "+".join(nodes)


def parse_string(text: str) -> CellCodes:
    """(6,) code of a string such as `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

    Raises:
        UserError: it has another form or names an operation that the space has not.
    """
    return np.array([SPACE.operations.index(name) for name in operations_of_string(text)])


def find_cell(text: str) -> Genotype:
    """The cell that a text names: an official index, or anything that `find_genotype` reads.

    Raises:
        UserError: there is no such cell.
    """
    if text.isdecimal():
        if int(text) >= CELLS:
            raise UserError(f"There is no cell {text}; indices go from 0 to {CELLS - 1}.")
        return decode_cell(all_codes()[int(text)])
    genotype = find_genotype(text)
    if not isinstance(genotype, Genotype):
        raise UserError(f"'{shortened(text)}' is a chain of blocks, not a cell of NAS-Bench-201.")
    return genotype
