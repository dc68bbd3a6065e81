"""NAS-Bench-201's strings (2020, arXiv:2001.00326): `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""

import re

from engine.errors import UserError, nearest
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Cell, Genotype

SPACE = find_space("nasbench201")


def operations_of_string(text: str) -> list[str]:
    """The operations of the six edges, in the order of the space's edges.

    Raises:
        UserError: the string has another form or names an operation that the space has not.
    """
    # The sources are redundant: a cell names them in the space's order or is refused.
    parts = re.findall(r"([^|~+]+)~(\d)", text)
    sources = [int(source) for _, source in parts]
    if sources != [source for source, _ in SPACE.edges] or text.count("+") != SPACE.nodes - 1:
        raise UserError(f"'{text}' is not a cell; write it as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.")
    operations = [name for name, _ in parts]
    for name in operations:
        if name not in SPACE.operations:
            choices = nearest(name, SPACE.operations)
            raise UserError(f"'{name}' in '{text}' is not an operation of NAS-Bench-201; {choices}")
    return operations


def genotype_of_operations(operations: list[str]) -> Genotype:
    """The cell with these operations on its six edges, all of them named."""
    edges = [(name, source) for name, (source, _) in zip(operations, SPACE.edges, strict=True)]
    nodes = tuple(tuple(edges[into]) for into in SPACE.entering)
    return Genotype(space=SPACE.name, cells={"cell": Cell(nodes=nodes, output=(SPACE.nodes,))})


def genotype_of_string(text: str) -> Genotype:
    """The cell of a string.

    Raises:
        UserError: see `operations_of_string`.
    """
    return genotype_of_operations(operations_of_string(text))
