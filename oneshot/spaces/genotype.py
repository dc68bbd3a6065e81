"""A genotype: which operations a found cell keeps and where each reads from.

This is what a search hands to retraining. States of a cell are numbered from its inputs on: in the DARTS
space 0 and 1 are the outputs of the two cells before and 2 to 5 the nodes; in NAS-Bench-201 and in the
recurrent space 0 is the input and the nodes start at 1.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from engine.config import Config
from engine.errors import nearest
from oneshot.chains.genotype import ChainGenotype, chain_of
from oneshot.chains.space import CHAIN, ChainSpace
from oneshot.spaces.cells import CellSpace, OwnSpace, find_space
from oneshot.spaces.search_space import SearchSpace

Edge = tuple[str, int]  # (operation, the state it reads)


# With tags, an error speaks of the one that is meant.
NameOrOwn = Annotated[
    Annotated[str, Tag("name")] | Annotated[OwnSpace, Tag("own")],
    Discriminator(lambda value: "own" if isinstance(value, dict | OwnSpace) else "name"),
]


class Cell(Config):
    """One cell."""

    nodes: tuple[tuple[Edge, ...], ...] = Field(
        description="for each node in order, the edges whose sum it is"
    )
    output: tuple[int, ...] = Field(
        description="the states that the cell returns: concatenated (DARTS), averaged (recurrent) or the last"
    )


class Genotype(Config):
    """The cells of a network, by kind.

    The kinds are `normal` and `reduce` (DARTS), `cell` (NAS-Bench-201) or `recurrent`.
    """

    space: NameOrOwn = Field("darts", description="search space that it belongs to")
    cells: dict[str, Cell]

    @model_validator(mode="after")
    def _reads_only_what_exists(self) -> Self:
        space = find_space(self.space)
        if set(self.cells) != set(space.cells):
            raise ValueError(
                f"a genotype of space '{space.name}' has the cells {', '.join(space.cells)}, not "
                f"{', '.join(self.cells)}"
            )
        for kind, cell in self.cells.items():
            _check_edges(kind, cell, space)
            # Not by the space: a genotype may have more or fewer nodes than its space.
            last = space.inputs + len(cell.nodes) - 1
            if not cell.output or not all(0 <= state <= last for state in cell.output):
                raise ValueError(
                    f"{kind} cell: its output {list(cell.output)} must name states from 0 to {last}"
                )
        return self


AnyGenotype = Genotype | ChainGenotype  # what a search finds and `oneshot.retrain` trains


def genotype_kind(values: Mapping[str, object]) -> type[Genotype] | type[ChainGenotype]:
    """What values that were read describe: only a chain has layers."""
    return ChainGenotype if "layers" in values else Genotype


def genotype_of(space: SearchSpace, nodes: Mapping[str, Sequence[Sequence[Edge]]]) -> AnyGenotype:
    """What was found in a space.

    Args:
        space: what was searched.
        nodes: for each kind of cell and each of its nodes in order, the edges that it keeps.
    """
    if isinstance(space, ChainSpace):
        return chain_of(space, [operation for ((operation, _),) in nodes[CHAIN]])
    assert isinstance(space, CellSpace)
    cells = {}
    for kind, of_kind in nodes.items():
        cells[kind] = Cell(nodes=tuple(tuple(edges) for edges in of_kind), output=space.output)
    return Genotype(space=space.in_genotypes, cells=cells)


def _check_edges(kind: str, cell: Cell, space: CellSpace) -> None:
    for target, edges in enumerate(cell.nodes, start=space.inputs):
        for operation, source in edges:
            if operation not in space.known:
                raise ValueError(
                    f"{kind} cell: '{operation}' is not an operation; {nearest(operation, space.known)}"
                )
            if not 0 <= source < target:
                raise ValueError(
                    f"{kind} cell: node {target} cannot read state {source}; it reads states below its own "
                    "number"
                )
