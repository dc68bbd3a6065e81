"""Architectures that are drawn whole: for methods that train or judge one at a time."""

import numpy as np
import torch

from oneshot.axes.edge_weights import Mixture
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Cell, Genotype

Choice = dict[str, tuple[tuple[int, int], ...]]  # for each kind of cell: (edge, operation), node by node


def offered(space: CellSpace, kind: str, edge: int) -> list[int]:
    """Operations that may stand on an edge of a drawn architecture: none only where a found cell may keep
    it."""
    row = space.may(kind)[edge].tolist()
    return [
        o for o, name in enumerate(space.operations) if row[o] and (name != "none" or space.keeps is None)
    ]


def draw(space: CellSpace, rng: np.random.Generator) -> Choice:
    """One architecture, uniformly: each node keeps as many distinct edges as the space says; operations are
    uniform."""
    choice = {}
    for kind in space.cells:
        pairs = []
        for into in space.entering:
            edges = np.arange(into.start, into.stop)
            kept = (
                edges
                if space.keeps is None
                else np.sort(rng.choice(edges, min(space.keeps, len(edges)), replace=False))
            )
            pairs += [(int(edge), int(rng.choice(offered(space, kind, int(edge))))) for edge in kept]
        choice[kind] = tuple(pairs)
    return choice


def as_mixtures(space: CellSpace, choice: Choice) -> dict[str, Mixture]:
    """A network that runs only this architecture. On CPU: `Searching` takes it to its device."""
    mixtures = {}
    for kind, pairs in choice.items():
        weight_EO = torch.zeros(len(space.edges), len(space.operations))
        runs: list[tuple[int, ...]] = [()] * len(space.edges)
        for edge, operation in pairs:
            weight_EO[edge, operation], runs[edge] = 1.0, (operation,)
        mixtures[kind] = Mixture(weight_EO, tuple(runs))
    return mixtures


def as_genotype(space: CellSpace, choice: Choice) -> Genotype:
    """The same as a genotype."""
    cells = {}
    for kind, pairs in choice.items():
        nodes = [
            tuple(
                (space.operations[operation], space.edges[edge][0])
                for edge, operation in pairs
                if into.start <= edge < into.stop
            )
            for into in space.entering
        ]
        cells[kind] = Cell(nodes=tuple(nodes), output=space.output)
    return Genotype(space=space.name, cells=cells)
