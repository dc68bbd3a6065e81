"""Cells of search networks: every node sums what its edges pass on.

DARTS (2019, arXiv:1806.09055), with PC-DARTS's partial channels (2020, arXiv:1907.05737).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import EdgeWeights
from oneshot.networks.edge_operations import FactorizedSkip, Norm
from oneshot.networks.parallel_edges import EdgeSettings, ParallelEdges, sum_terms
from oneshot.spaces.cells import NOISE, CellSpace

Arriving = dict[int, list[Tensor]]  # for each target state, what the edges into it pass on


class MixedNodes(nn.Module):
    """The nodes of one cell: each is the sum of what its edges pass on.

    Args:
        space: whose graph and operations.
        kind: of cell: `normal`, `reduce` or `cell`.
        channels: C, of every state.
        settings: of its edges. With partial channels, the channels of a node are shuffled.
    """

    by_source: Tensor

    def __init__(self, space: CellSpace, kind: str, channels: int, settings: EdgeSettings):
        super().__init__()
        self.space, self.partial, self.halves = space, settings.partial, kind == "reduce"
        settings = settings._replace(constructors=space.constructors)
        allowed_EO = space.allowed_mask(kind)
        self.leaving: list[list[int]] = []  # for each state, its edges
        self.parallel_edges = nn.ModuleList()
        for state in range(space.inputs + space.nodes - 1):
            edges = [e for e, (source, _) in enumerate(space.edges) if source == state]
            self.leaving.append(edges)
            width, stride = channels // settings.partial, self._stride(state)
            module = ParallelEdges(space.operations, allowed_EO[edges], width, stride, settings)
            self.parallel_edges.append(module)
        # Edges sorted by source, as they are computed; the space sorts them by target.
        order = [e for edges in self.leaving for e in edges]
        self.register_buffer("by_source", torch.tensor(order), persistent=False)

    def _stride(self, state: int) -> int:
        """Of the edges that leave a state."""
        return 2 if self.halves and state < self.space.inputs else 1

    def forward(self, states: list[Tensor], cell_weights: EdgeWeights, create_graph: bool) -> list[Tensor]:
        """The input states -> all states, input states first."""
        weight_EO = cell_weights.weight_EO
        if cell_weights.edge_E is not None:
            weight_EO = weight_EO * cell_weights.edge_E[:, None]
        counts = [len(edges) for edges in self.leaving]
        weights = weight_EO[self.by_source].split_with_sizes(counts)
        states = list(states)
        # Each edge's weight apart, all at once: their gradients are then one stack.
        weight_of_edge = None
        if self.partial > 1 and cell_weights.edge_E is not None:
            weight_of_edge = cell_weights.edge_E.unbind()
        draws = None
        if NOISE in self.space.operations or cell_weights.skip_dropout > 0:
            draws = torch.Generator(states[0].device).manual_seed(cell_weights.noise)
        arriving: Arriving = {}
        passing_by: Arriving = {}
        for state, (parallel_edges, edges) in enumerate(zip(self.parallel_edges, self.leaving, strict=True)):
            x = states[state]
            if self.partial > 1:
                x = self._split_off(state, x, weight_of_edge, passing_by)
            active = None
            if cell_weights.active is not None:
                active = tuple(cell_weights.active[e] for e in edges)
            # All edges that leave this state, at once.
            passed_on = parallel_edges(
                x, weights[state], active, cell_weights.skip, create_graph, draws, cell_weights.skip_dropout
            )
            for e, passed in zip(edges, passed_on, strict=True):
                arriving.setdefault(self.space.edges[e][1], []).append(passed)
            # Edges are handled source by source: after this state, all edges into the next one are computed.
            target = state + 1
            if target >= self.space.inputs:
                node = self._node(target, arriving.pop(target), cell_weights.offset_E)
                states.append(self._joined(node, passing_by.pop(target, [])))
        return states

    def _split_off(
        self, state: int, x: Tensor, weight_of_edge: Sequence[Tensor] | None, passing_by: Arriving
    ) -> Tensor:
        """The channels of a state that go through operations; the rest is added to `passing_by`."""
        own = x.shape[1] // self.partial
        # The first C / K channels go through the operations.
        rest = x[:, own:]
        # They pass by the operations, but must have the size of what those give.
        if self._stride(state) == 2:
            rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
        for e in self.leaving[state]:
            weighted = rest if weight_of_edge is None else rest * weight_of_edge[e]
            passing_by.setdefault(self.space.edges[e][1], []).append(weighted)
        return x[:, :own].contiguous(memory_format=torch.channels_last)

    def _node(self, target: int, arriving: list[Tensor], offset_E: Tensor | None) -> Tensor:
        """The sum of what arrives at the state `target`."""
        node = sum_terms(arriving)
        if offset_E is None:
            return node
        into = self.space.entering[target - self.space.inputs]
        return node + offset_E[into].sum()

    def _joined(self, node: Tensor, passing_by: list[Tensor]) -> Tensor:
        """The node with the channels that passed by the operations."""
        if not passing_by:
            return node
        return shuffle(torch.cat([node, sum_terms(passing_by)], 1), self.partial)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel c of group g becomes channel g of block c (PC-DARTS).

    So the next edge, which takes the first channels only, gets some that went through operations and some
    that did not.
    """
    count, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, groups, channels // groups).transpose(3, 4)
    return x.reshape(count, height, width, channels).permute(0, 3, 1, 2)


class CellInput(nn.Module):
    """Brings a rectified input state to a cell's channels: a 1x1 convolution and BatchNorm.

    Where the cell before halved the map, a factorized reduction halves this one too.
    """

    def __init__(self, inp: int, out: int, halves: bool, track: bool):
        super().__init__()
        self.conv = None if halves else nn.Conv2d(inp, out, 1, bias=False)
        self.skip = FactorizedSkip(inp, out, 1, track) if halves else None
        self.norm = None if halves else Norm(out, track)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H, W), or (N, O, H / 2, W / 2) with sides rounded up."""
        if self.skip is not None:
            return self.skip(x)
        assert self.conv is not None and self.norm is not None
        return self.norm(self.conv(x))


class DartsCell(nn.Module):
    """One cell of the DARTS space: it reads the two cells before it and concatenates its nodes.

    Args:
        space: whose graph and operations.
        kind: `normal` or `reduce`.
        widths: channels of the two cells before.
        channels: of its nodes.
        after_reduction: whether the last cell halved the map.
        settings: of its edges.
    """

    def __init__(
        self,
        space: CellSpace,
        kind: str,
        widths: tuple[int, int],
        channels: int,
        after_reduction: bool,
        settings: EdgeSettings,
    ):
        super().__init__()
        self.kind = kind
        before = CellInput(widths[0], channels, after_reduction, settings.track)
        last = CellInput(widths[1], channels, False, settings.track)
        self.inputs = nn.ModuleList([before, last])
        self.mixed = MixedNodes(space, kind, channels, settings)

    def forward(self, before: Tensor, last: Tensor, cell_weights: EdgeWeights, create_graph: bool) -> Tensor:
        """The cell's output from the rectified outputs of the two cells before."""
        states = [self.inputs[0](before), self.inputs[1](last)]
        # Without the two input states.
        return torch.cat(self.mixed(states, cell_weights, create_graph)[2:], 1)
