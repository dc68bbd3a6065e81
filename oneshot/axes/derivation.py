"""From probabilities of operations to a genotype."""

from typing import Literal

from torch import Tensor

from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Cell, Edge, Genotype

Derivation = Literal["edges", "pairs", "pairs_repeat"]


def derive(space: CellSpace, probabilities: dict[str, Tensor], how: Derivation = "edges") -> Genotype:
    """The strongest architecture of the space.

    Args:
        space: NAS-Bench-201 keeps the strongest operation of every edge, also none; the others keep
            `space.keeps` edges a node.
        probabilities: (E, O) for each kind of cell, times the edge's weight where there is one.
        how: `edges`: the edges whose strongest operation other than none weighs most (DARTS); `pairs`: the
            heaviest pairs of operation and edge, each edge once (PR-DARTS); `pairs_repeat`: the same, but an
            edge may be taken twice, as in PR-DARTS's code.

    Equal weights: the first edge or operation wins.
    """
    return Genotype(
        space=space.name,
        cells={kind: _cell(space, values.tolist(), how) for kind, values in probabilities.items()},
    )


def _cell(space: CellSpace, weight_EO: list[list[float]], how: Derivation) -> Cell:
    nodes = []
    for into in space.entering:
        entering = [(space.edges[e][0], weight_EO[e]) for e in range(into.start, into.stop)]
        if space.keeps is None:
            nodes.append(tuple((_strongest(space, weights, True)[1], source) for source, weights in entering))
        elif how == "edges":
            best = sorted(
                ((*_strongest(space, weights, False), source) for source, weights in entering),
                key=lambda found: -found[0],
            )
            nodes.append(tuple((name, source) for _, name, source in best[: space.keeps]))
        else:
            nodes.append(_pairs(space, entering, space.keeps, how == "pairs_repeat"))
    return Cell(nodes=tuple(nodes), output=space.output)


def _strongest(space: CellSpace, weights: list[float], none: bool) -> tuple[float, str]:
    candidates = [
        (weight, name)
        for weight, name in zip(weights, space.operations, strict=True)
        if none or name != "none"
    ]
    return max(candidates, key=lambda pair: pair[0])


def _pairs(
    space: CellSpace, entering: list[tuple[int, list[float]]], keeps: int, repeat: bool
) -> tuple[Edge, ...]:
    heaviest = sorted(
        (
            (weight, name, source)
            for source, weights in entering
            for weight, name in zip(weights, space.operations, strict=True)
        ),
        key=lambda pair: -pair[0],
    )
    chosen: list[Edge] = []
    for _, name, source in heaviest:
        if (
            name != "none"
            and len(chosen) < keeps
            and (repeat or source not in [taken for _, taken in chosen])
        ):
            chosen.append((name, source))
    return tuple(chosen)
