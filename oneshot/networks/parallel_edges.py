"""Every edge that leaves one state, computed together: they all read the same tensor.

A search network written edge by edge launches each operation once an edge. Here an operation is one set of
kernels for all n edges of a state (`oneshot.networks.edge_operations`); pools and the identity are computed
once. The numbers are those of the edge-by-edge network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.fast import average_pool
from oneshot.axes.edge_weights import ActiveOperations
from oneshot.networks.edge_operations import (
    FactorizedSkip,
    Norm,
    OwnOperations,
    Separable,
    build_edge_operation,
)
from oneshot.spaces.cells import NOISE
from oneshot.spaces.own_operations import Constructors


class EdgeSettings(NamedTuple):
    """How the edges of a search network are built.

    Args:
        partial: K of PC-DARTS: C / K channels go through the operations, the others pass by. 1: all go.
        track: keep running statistics for evaluation.
        pool_norm: a BatchNorm after each pool.
        auxiliary: room for a skip connection beside the operations (DARTS-), which at stride 2 has weights.
        constructors: of operations that are a user's own.
    """

    partial: int = 1
    track: bool = True
    pool_norm: bool = True
    auxiliary: bool = False
    constructors: Constructors = ()


DEFAULT_EDGES = EdgeSettings()


class SharedTerm(NamedTuple):
    """A map that every edge adds with a weight of its own: (N, C, H, W) and (n,)."""

    map: Tensor
    weight_n: Tensor


class RectifiedState:
    """A state after ReLU, and its copies side by side, each of which is made once."""

    def __init__(self, x: Tensor, stride: int):
        self.raw, self.whole = x, F.relu(x)
        # All that a dilated convolution at stride 2 reads.
        self.even = self.whole[:, :, ::2, ::2] if stride == 2 else self.whole
        self._copies: dict[tuple[int, bool], Tensor] = {}

    def copied(self, count: int, even: bool) -> Tensor:
        """`count` copies along the channels, (N, count C, H, W); of the even pixels, if asked."""
        key = count, even
        if key not in self._copies:
            self._copies[key] = torch.cat([self.even if even else self.whole] * count, 1)
        return self._copies[key]


class ParallelEdges(nn.Module):
    """The n edges that leave one state.

    Args:
        operations: the names of the columns of weight_nO.
        allowed_nO: booleans, which operation competes on which edge.
        channels: C, of the state and of what the edges pass on.
        stride: 1 or 2.
        settings: see `EdgeSettings`; `partial` is the caller's.
    """

    def __init__(
        self,
        operations: tuple[str, ...],
        allowed_nO: Tensor,
        channels: int,
        stride: int,
        settings: EdgeSettings = DEFAULT_EDGES,
    ):
        super().__init__()
        self.operations, self.channels, self.stride = operations, channels, stride
        self.edges = len(allowed_nO)
        self.allowed: dict[str, tuple[int, ...]] = {}  # for each operation the edges where it competes
        self.own, self.pool_norm = nn.ModuleDict(), nn.ModuleDict()
        constructors = dict(settings.constructors)
        for column, name in enumerate(operations):
            positions = tuple(allowed_nO[:, column].nonzero().flatten().tolist())
            if name == "none" or not positions:
                continue
            self.allowed[name] = positions
            if name in constructors:
                self.own[name] = OwnOperations(constructors[name], channels, len(positions), stride)
                continue
            module = build_edge_operation(name, channels, len(positions), stride, settings.track)
            # One set of weights for all edges where the operation competes.
            if module is not None:
                self.own[name] = module
            elif "pool" in name and settings.pool_norm:
                self.pool_norm[name] = Norm(channels, settings.track)
        self.auxiliary: FactorizedSkip | None = None
        if settings.auxiliary and stride == 2:
            self.auxiliary = FactorizedSkip(channels, channels, self.edges, settings.track)

    def forward(
        self,
        x: Tensor,
        weight_nO: Tensor,
        active: ActiveOperations | None,
        skip: Tensor | None,
        create_graph: bool,
        draws: torch.Generator | None = None,
        skip_dropout: float = 0.0,
    ) -> list[Tensor]:
        """What each of the n edges passes on; (N, C, H / stride, W / stride) each.

        Args:
            x: the state (N, C, H, W).
            weight_nO, active, skip: as in `EdgeWeights`, of these edges.
            create_graph: the result will be differentiated twice, which the fast gradients are not made for.
            draws: of the operation noise and of dropout, on the device of x.
            skip_dropout: as in `EdgeWeights`.
        """
        # All operations with weights begin with a ReLU; pools and the identity read x itself.
        state = RectifiedState(x, self.stride)
        whole: list[Tensor] = []  # terms (N, n C, H, W) of all edges, edge by edge
        terms: list[list[Tensor]] = [[] for _ in range(self.edges)]  # of each edge
        shared: list[SharedTerm] = []
        # All columns at once: their gradients are then one stack, and not a sum of padded columns. Where few
        # operations run, that stack would be mostly zeros.
        columns = weight_nO.unbind(1) if active is None else None
        for name, allowed in self.allowed.items():
            column = self.operations.index(name)
            running = _running(allowed, column, active)
            if not running:
                continue
            weight_n = weight_nO[:, column] if columns is None else columns[column]
            drawn = self._drawn(name, x, weight_n, running, skip_dropout, draws)
            if drawn is not None:
                _hand_out(drawn, running, terms)
                continue
            if name not in self.own:
                self._share(SharedTerm(self._pooled(name, x), weight_n), running, shared, terms)
                continue
            # With weights of their own: one kernel call for all edges where it runs.
            y = self._own_operation(name, state, weight_n, running, create_graph)
            # With all edges running the term is added to others of its shape before it is cut.
            if len(running) == self.edges:
                whole.append(y)
            else:
                _hand_out(y, running, terms)
        if skip is not None:
            skip_n = skip.expand(self.edges)
            if self.auxiliary is None:
                shared.append(SharedTerm(x, skip_n))
            else:
                whole.append(self.auxiliary(state.whole, range(self.edges), self._per_channel(skip_n)))
        return self._sums(whole, shared, terms, x)

    def _sums(
        self, whole: list[Tensor], shared: list[SharedTerm], terms: list[list[Tensor]], x: Tensor
    ) -> list[Tensor]:
        """The sum of each edge's terms, its part of the terms of all edges included."""
        # Summed before they are handed out, so that one addition serves all edges.
        if whole:
            _hand_out(sum_terms(whole), range(self.edges), terms)
        # Terms without weights of their own, weighed for all edges in one product.
        if shared:
            _hand_out_shared(shared, terms)
        return [self._passed_on(of_edge, x) for of_edge in terms]

    def _own_operation(
        self, name: str, state: RectifiedState, weight_n: Tensor, running: tuple[int, ...], create_graph: bool
    ) -> Tensor:
        """The weighted output of an operation with weights, on the edges where it runs."""
        module = self.own[name]
        if len(running) < self.edges:
            weight_n = torch.stack([weight_n[position] for position in running])
        read = state.whole
        if isinstance(module, OwnOperations):
            # They know themselves whether they begin with a ReLU.
            read = state.raw
        if isinstance(module, Separable):
            read = state.copied(len(running), even=module.dilated and self.stride == 2)
        # The module has weights only for edges where the operation competes, so positions are among those.
        positions = [self.allowed[name].index(position) for position in running]
        return module(read, positions, self._per_channel(weight_n), create_graph)

    def _drawn(
        self,
        name: str,
        x: Tensor,
        weight_n: Tensor,
        running: tuple[int, ...],
        skip_dropout: float,
        draws: torch.Generator | None,
    ) -> Tensor | None:
        """Weighted output of an operation that draws, (N, n C, H, W); None: this one does not."""
        dropped = name == "skip_connect" and name not in self.own and skip_dropout > 0 and self.training
        if name != NOISE and not dropped:
            return None
        assert draws is not None, "the cell has a seed of what it draws"
        weights = self._per_channel(torch.stack([weight_n[position] for position in running]))
        if dropped:
            # P-DARTS's dropout after a skip: every edge has a mask of its own.
            copies = torch.cat([x] * len(running), 1)
            kept = torch.rand(copies.shape, generator=draws, dtype=x.dtype, device=x.device) >= skip_dropout
            return copies * kept / (1 - skip_dropout) * weights[:, None, None]
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        shape = (len(x), len(running) * self.channels, height, width)
        noise = torch.randn(shape, generator=draws, dtype=x.dtype, device=x.device)
        return noise.contiguous(memory_format=torch.channels_last) * weights[:, None, None]

    def _per_channel(self, weight_n: Tensor) -> Tensor:
        """(n C,): the weight of each edge for each of its channels."""
        # An expanded view would not do: torch's gradient of BatchNorm reads it as if it were contiguous.
        return weight_n.repeat_interleave(self.channels)

    def _share(
        self,
        term: SharedTerm,
        running: Sequence[int],
        shared: list[SharedTerm],
        terms: list[list[Tensor]],
    ) -> None:
        """Collect a term that all edges have; weigh one that some edges have, and hand it out."""
        if len(running) == self.edges:
            shared.append(term)
            return
        for position in running:
            terms[position].append(term.weight_n[position] * term.map)

    def _pooled(self, name: str, x: Tensor) -> Tensor:
        """The output of an operation without weights."""
        match name:
            case "max_pool_3x3":
                x = F.max_pool2d(x, 3, self.stride, 1)
            case "avg_pool_3x3":
                x = average_pool(x, self.stride)
        return self.pool_norm[name](x) if name in self.pool_norm else x

    def _passed_on(self, terms: list[Tensor], x: Tensor) -> Tensor:
        """The sum of an edge's terms; zeros where nothing runs on it."""
        if terms:
            return sum_terms(terms)
        count, _, height, width = x.shape
        return x.new_zeros(count, self.channels, -(-height // self.stride), -(-width // self.stride))


def _running(allowed: tuple[int, ...], column: int, active: ActiveOperations | None) -> tuple[int, ...]:
    """The edges on which the operation of a column runs, of those where it competes."""
    if active is None:
        return allowed
    return tuple(position for position in allowed if column in active[position])


def _hand_out(y: Tensor, positions: Sequence[int], terms: list[list[Tensor]]) -> None:
    """Give each edge its block of channels."""
    for position, block in zip(positions, y.chunk(len(positions), 1), strict=True):
        terms[position].append(block)


def _hand_out_shared(shared: list[SharedTerm], terms: list[list[Tensor]]) -> None:
    """Weighted sums of the same few maps for every edge, as one matrix product."""
    # Channels last is the layout of the maps, so flattening copies nothing but the stack.
    maps = torch.stack([term.map.permute(0, 2, 3, 1) for term in shared])
    weight_nF = torch.stack([term.weight_n for term in shared], 1)
    sums = (weight_nF @ maps.flatten(1)).view(-1, *maps.shape[1:]).permute(0, 1, 4, 2, 3)
    for of_edge, of_shared in zip(terms, sums.unbind(), strict=True):
        of_edge.append(of_shared)


def sum_terms(terms: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    if len(terms) == 1:
        return terms[0]
    result = terms[0] + terms[1]  # a new tensor, so that the additions below change no term
    for term in terms[2:]:
        result += term
    return result
