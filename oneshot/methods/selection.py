"""Selection by perturbation: an operation is as good as its edge is bad without it.

DARTS-PT: Rethinking Architecture Selection in Differentiable NAS (2021, arXiv:2108.04392).
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from engine.config import Config
from engine.seed import numpy_generator
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState

EdgeWeightsNow = Callable[[], NetworkEdgeWeights]  # of the expected weights and all decisions so far


class PerturbationSelection(Config):
    """After the search edges are decided one by one, and the network is tuned in between.

    Edges come in a random order. For each the operation wins without which the search network is worst. Then
    each node loses the edges without which the network is best, until it has as many as the space keeps.
    """

    tune_epochs: int = Field(5, ge=0, description="epochs of the search's steps after each decision")
    images: int | None = Field(
        None, ge=1, description="images (words) that each question is answered on; none: all"
    )

    def decisions(self, space: SearchSpace) -> int:
        """How many decisions a kind of cell needs."""
        return len(space.edges) + len(_crowded_nodes(space))

    def tuning(self, space: SearchSpace) -> int:
        """Epochs after the search: the last decision has none."""
        return self.tune_epochs * (self.decisions(space) - 1)

    def wanted(self, epoch: int) -> int:
        """How many decisions there must be before the `epoch`-th epoch of tuning, from 1 on."""
        return 1 + (epoch - 1) // self.tune_epochs

    def decide(self, state: SearchState, edge_weights: EdgeWeightsNow, wanted: int) -> None:
        """Go on until there are `wanted` decisions for each kind of cell."""
        space = state.space
        for number in range(self._done(state), wanted):
            for kind in space.cells:
                self._decide_one(state, kind, edge_weights, number)

    def _done(self, state: SearchState) -> int:
        """Decisions so far for each kind of cell."""
        decided = state.alphas.decided
        if not decided:
            for kind, alpha_EO in state.alphas.operations.items():
                decided[kind] = torch.full_like(alpha_EO, torch.nan, requires_grad=False)
            return 0
        rows = _rows(decided[state.space.cells[0]])
        edges = sum(row is not None for row in rows)
        if edges < len(rows):
            return edges
        return edges + len(_crowded_nodes(state.space)) - len(_undecided_nodes(state.space, rows))

    def _decide_one(self, state: SearchState, kind: str, edge_weights: EdgeWeightsNow, number: int) -> None:
        space, decided_EO = state.space, state.alphas.decided[kind]
        rng, rows = numpy_generator(state.seed, "selection", kind, number), _rows(decided_EO)
        left = [e for e, row in enumerate(rows) if row is None]
        if left:
            edge = left[int(rng.integers(len(left)))]
            operation = self._best_operation(state, kind, edge, edge_weights)
            decided_EO[edge] = 0.0
            decided_EO[edge, operation] = 1.0
            source, target = space.edges[edge]
            print(f"decided: {kind} cell, {source}→{target}: {space.operations[operation]}")
            return
        nodes = _undecided_nodes(space, rows)
        node = nodes[int(rng.integers(len(nodes)))]
        into = space.entering[node]
        edges = list(range(into.start, into.stop))
        assert space.keeps is not None, "a node without a limit has nothing to decide"
        while len(edges) > space.keeps:
            worst = self._worst_edge(state, kind, edges, edge_weights)
            edges.remove(worst)
            decided_EO[worst] = 0.0
        sources = ", ".join(str(space.edges[edge][0]) for edge in edges)
        print(f"decided: {kind} cell, node {node + space.inputs} reads {sources}")

    def _best_operation(self, state: SearchState, kind: str, edge: int, edge_weights: EdgeWeightsNow) -> int:
        """The operation without which the network is worst; of equal ones the first."""
        space, worst, best = state.space, float("inf"), -1
        for operation, competes in enumerate(space.allowed_mask(kind)[edge].tolist()):
            # Where nodes keep few edges, none is no choice.
            if not competes or (space.keeps is not None and space.operations[operation] == "none"):
                continue
            without = edge_weights()[kind].weight_EO.clone()
            without[edge, operation] = 0.0
            score = self._score(state, kind, without, edge_weights)
            if score < worst:
                worst, best = score, operation
        return best

    def _worst_edge(
        self, state: SearchState, kind: str, edges: list[int], edge_weights: EdgeWeightsNow
    ) -> int:
        """The edge without which the network is best; of equal ones the last, as released."""
        best, found = -float("inf"), -1
        for edge in edges:
            without = edge_weights()[kind].weight_EO.clone()
            without[edge] = 0.0
            score = self._score(state, kind, without, edge_weights)
            if score >= best:
                best, found = score, edge
        return found

    def _score(self, state: SearchState, kind: str, weight_EO: Tensor, edge_weights: EdgeWeightsNow) -> float:
        """How good the network is with other weights for a kind of cell; more is better."""
        given = dict(edge_weights())
        given[kind] = given[kind]._replace(weight_EO=weight_EO)
        # The running statistics are those of the whole mixture; released, too, with those of the batch.
        value = state.measure(given, self.images, batch_statistics=True)
        return value if state.objective.quality == "accuracy" else -value


def _rows(decided_EO: Tensor) -> list[list[float] | None]:
    """For each edge the weights that were decided, or None."""
    rows: list[list[float] | None] = []
    for row in decided_EO.tolist():
        rows.append(None if row[0] != row[0] else row)  # nan is the only number that differs from itself
    return rows


def _crowded_nodes(space: SearchSpace) -> list[int]:
    """The nodes, from 0 on, into which more edges lead than a cell keeps."""
    found = []
    for node, into in enumerate(space.entering):
        if space.keeps is not None and into.stop - into.start > space.keeps:
            found.append(node)
    return found


def _undecided_nodes(space: SearchSpace, rows: list[list[float] | None]) -> list[int]:
    """Those of them that still have too many edges."""
    found = []
    for node in _crowded_nodes(space):
        into = space.entering[node]
        alive = sum(any(row or ()) for row in rows[into])
        if space.keeps is not None and alive > space.keeps:
            found.append(node)
    return found
