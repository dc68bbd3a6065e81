"""From probabilities of operations to a genotype."""

from typing import Literal

from torch import Tensor

from oneshot.spaces.genotype import AnyGenotype, Edge, genotype_of
from oneshot.spaces.search_space import SearchSpace

Derivation = Literal["edges", "pairs", "pairs_repeat"]
Entering = list[tuple[int, list[float]]]  # of one node: each edge's source and the weights of its operations


def derive_genotype(
    space: SearchSpace, probabilities: dict[str, Tensor], how: Derivation = "edges"
) -> AnyGenotype:
    """The strongest architecture of the space. Of equal weights the first edge or operation wins.

    Args:
        space: NAS-Bench-201 and chains keep the strongest operation of every edge, also none; the others
            keep `space.keeps` edges a node.
        probabilities: (E, O) for each kind of cell, times the edge's weight where there is one.
        how: `edges`: the edges whose strongest operation other than none weighs most (DARTS); `pairs`: the
            heaviest pairs of operation and edge, each edge once (PR-DARTS); `pairs_repeat`: the same, but an
            edge may be taken more than once, as in PR-DARTS's code.
    """
    nodes = {kind: _nodes(space, values.tolist(), how) for kind, values in probabilities.items()}
    return genotype_of(space, nodes)


def _nodes(space: SearchSpace, weight_EO: list[list[float]], how: Derivation) -> list[tuple[Edge, ...]]:
    """The edges that each node keeps."""
    nodes: list[tuple[Edge, ...]] = []
    for into in space.entering:
        # Sources instead of edges: a genotype names the state that an edge reads.
        entering = [(space.edges[e][0], weight_EO[e]) for e in range(into.start, into.stop)]
        if space.keeps is None:
            nodes.append(_every_edge(space, entering))
        elif how == "edges":
            nodes.append(_strongest_edges(space, entering, space.keeps))
        else:
            nodes.append(_heaviest_pairs(space, entering, space.keeps, how == "pairs_repeat"))
    return nodes


def _every_edge(space: SearchSpace, entering: Entering) -> tuple[Edge, ...]:
    """Each edge with its strongest operation."""
    kept = []
    for source, weights in entering:
        _, name = _strongest(space.operations, weights)
        kept.append((name, source))
    return tuple(kept)


def _strongest_edges(space: SearchSpace, entering: Entering, keeps: int) -> tuple[Edge, ...]:
    """The `keeps` edges whose strongest operation other than none weighs most."""
    found = []
    for source, weights in entering:
        # None counts only against its edge: it takes weight from the others and cannot win.
        weight, name = _strongest(space.operations, weights, without="none")
        found.append((weight, name, source))
    # The sort is stable, so the first of equal edges stays first.
    found.sort(key=lambda edge: -edge[0])
    return tuple((name, source) for _, name, source in found[:keeps])


def _heaviest_pairs(space: SearchSpace, entering: Entering, keeps: int, repeat: bool) -> tuple[Edge, ...]:
    """The `keeps` heaviest pairs of operation and edge; an edge more than once only with `repeat`."""
    pairs = []
    for source, weights in entering:
        for weight, name in zip(weights, space.operations, strict=True):
            pairs.append((weight, name, source))
    # Also stable: among equal pairs the first edge and operation come first.
    pairs.sort(key=lambda pair: -pair[0])
    kept: list[Edge] = []
    taken: set[int] = set()
    for _, name, source in pairs:
        if len(kept) == keeps:
            break
        if name != "none" and (repeat or source not in taken):
            kept.append((name, source))
            taken.add(source)
    return tuple(kept)


def _strongest(
    operations: tuple[str, ...], weights: list[float], without: str | None = None
) -> tuple[float, str]:
    """(weight, name) of the strongest operation but `without`."""
    named = zip(weights, operations, strict=True)
    # max returns the first of equal pairs.
    return max((pair for pair in named if pair[1] != without), key=lambda pair: pair[0])
