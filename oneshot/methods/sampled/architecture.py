"""Whole architectures that are drawn at random, for methods that train or judge one at a time."""

import numpy as np
import torch

from oneshot.axes.edge_weights import EdgeWeights
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.space import CHAIN
from oneshot.spaces.genotype import AnyGenotype, Edge, genotype_of
from oneshot.spaces.search_space import SearchSpace

# For each kind of cell (edge, operation), node by node.
Architecture = dict[str, tuple[tuple[int, int], ...]]


def offered_operations(space: SearchSpace, kind: str, edge: int) -> list[int]:
    """Operations that may stand on an edge of a drawn architecture.

    The operation none is among them only where a found cell may keep it.
    """
    allowed = space.allowed_mask(kind)[edge].tolist()
    offered = []
    for operation, name in enumerate(space.operations):
        if allowed[operation] and (name != "none" or space.keeps is None):
            offered.append(operation)
    return offered


def sample_architecture(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """One architecture, uniformly.

    Each node keeps as many distinct edges as the space says; operations are uniform.
    """
    architecture = {}
    for kind in space.cells:
        pairs = []
        for into in space.entering:
            edges = np.arange(into.start, into.stop)
            if space.keeps is not None:
                # Sorted: operations are then drawn in the order of the edges.
                edges = np.sort(rng.choice(edges, min(space.keeps, len(edges)), replace=False))
            for edge in edges.tolist():
                pairs.append((edge, int(rng.choice(offered_operations(space, kind, edge)))))
        architecture[kind] = tuple(pairs)
    return architecture


def as_edge_weights(space: SearchSpace, architecture: Architecture) -> dict[str, EdgeWeights]:
    """A network that runs only this architecture. On CPU: `SearchState` takes it to its device."""
    edge_weights = {}
    for kind, pairs in architecture.items():
        weight_EO = torch.zeros(len(space.edges), len(space.operations))
        # An edge that the architecture does not keep runs nothing.
        active: list[tuple[int, ...]] = [()] * len(space.edges)
        for edge, operation in pairs:
            weight_EO[edge, operation] = 1.0
            # PR-DARTS's code may take two operations of one edge.
            active[edge] = tuple(sorted({*active[edge], operation}))
        edge_weights[kind] = EdgeWeights(weight_EO, tuple(active))
    return edge_weights


def as_genotype(space: SearchSpace, architecture: Architecture) -> AnyGenotype:
    """The genotype of an architecture."""
    # Edges are in order, so each node's edges are, too.
    found: dict[str, list[list[Edge]]] = {}
    for kind, pairs in architecture.items():
        nodes: list[list[Edge]] = [[] for _ in range(space.nodes)]
        for edge, operation in pairs:
            source, target = space.edges[edge]
            nodes[target - space.inputs].append((space.operations[operation], source))
        found[kind] = nodes
    return genotype_of(space, found)


def architecture_of(space: SearchSpace, genotype: AnyGenotype) -> Architecture:
    """The architecture of a genotype that was found in this space."""
    if isinstance(genotype, ChainGenotype):
        searched = [genotype.layers[number] for number in genotype.space.searched]
        return {CHAIN: tuple((edge, space.operations.index(name)) for edge, name in enumerate(searched))}
    architecture = {}
    for kind, cell in genotype.cells.items():
        pairs = []
        for target, edges in enumerate(cell.nodes, start=space.inputs):
            for name, source in edges:
                pairs.append((space.edges.index((source, target)), space.operations.index(name)))
        architecture[kind] = tuple(pairs)
    return architecture
