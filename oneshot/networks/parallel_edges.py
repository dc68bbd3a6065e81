"""Every edge that leaves one state, computed together: they all read the same tensor.

A search network written edge by edge launches each operation once an edge. Here an operation is one set of
kernels for all n edges of a state ("fan"): its weights are those of the edges stacked, C rows each; BatchNorm
is per channel, so the n of them are one, whose scale carries the mixing weights; pools and the identity are
computed once. The numbers are those of the edge-by-edge network.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.fast import average_pool, depthwise, torch_depthwise
from oneshot.axes.edge_weights import Runs

EPS = 1e-5
SHARED = ("skip_connect", "max_pool_3x3", "avg_pool_3x3")  # no weights of their own: the same for every edge


def stacked(rows: int, columns: int, kernel: int) -> nn.Parameter:
    """Weights (rows, columns, kernel, kernel), initialised as nn.Conv2d does."""
    weight = nn.Parameter(torch.empty(rows, columns, kernel, kernel))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def rows_of(weight: Tensor, at: Sequence[int], edges: int) -> Tensor:
    """The rows of the edges at positions `at` among `edges`."""
    if len(at) == edges:
        return weight
    blocks = weight.chunk(edges)
    return torch.cat([blocks[position] for position in at])


class Norm(nn.Module):
    """BatchNorm without weights of its own. Of a part of its channels (a sampled network) it always takes the
    batch's statistics."""

    mean: Tensor | None
    var: Tensor | None

    def __init__(self, channels: int, track: bool):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels) if track else None)
        self.register_buffer("var", torch.ones(channels) if track else None)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) normalised, times `scale` (C,)."""
        tracked = self.mean is not None and len(self.mean) == x.shape[1]
        mean, var = (self.mean, self.var) if tracked else (None, None)
        return F.batch_norm(x, mean, var, scale, None, self.training or not tracked, 0.1, EPS)


class Separable(nn.Module):
    """(ReLU, depthwise, pointwise, BatchNorm), twice for sep_conv, once with dilation 2 for dil_conv."""

    def __init__(self, channels: int, edges: int, kernel: int, stride: int, dilated: bool, track: bool):
        super().__init__()
        self.edges, self.stride, self.dilated = edges, stride, dilated
        passes = 1 if dilated else 2
        self.depth = nn.ParameterList(stacked(edges * channels, 1, kernel) for _ in range(passes))
        self.point = nn.ParameterList(stacked(edges * channels, channels, 1) for _ in range(passes))
        self.norm = nn.ModuleList(Norm(edges * channels, track) for _ in range(passes))

    def forward(self, x: Tensor, at: Sequence[int], scale: Tensor, twice: bool) -> Tensor:
        """Of x (N, len(at) C, H, W), rectified and copied for each edge: the same shape, halved at stride 2.

        A dilated convolution at stride 2 reads even rows and columns only: it is given those, and is a dense
        one of them.
        """
        stride = 1 if self.dilated else self.stride
        dilation = 2 if self.dilated and self.stride == 1 else 1
        for number, (depth, point, norm) in enumerate(zip(self.depth, self.point, self.norm, strict=True)):
            if number:
                x, stride = F.relu(x, inplace=True), 1
            weight = rows_of(depth, at, self.edges)
            convolve = torch_depthwise if twice else depthwise
            x = F.conv2d(
                convolve(x, weight, stride, dilation), rows_of(point, at, self.edges), groups=len(at)
            )
            x = norm(x, scale if number == len(self.norm) - 1 else None)
        return x


class Convolution(nn.Module):
    """ReLU, convolution, BatchNorm (NAS-Bench-201). Its input is rectified. Before a BatchNorm a bias would
    do nothing."""

    def __init__(self, channels: int, edges: int, kernel: int, track: bool):
        super().__init__()
        self.edges = edges
        self.weight = stacked(edges * channels, channels, kernel)
        self.norm = Norm(edges * channels, track)

    def forward(self, x: Tensor, at: Sequence[int], scale: Tensor, twice: bool) -> Tensor:
        """(N, len(at) C, H, W), edge by edge."""
        return self.norm(
            F.conv2d(x, rows_of(self.weight, at, self.edges), padding=self.weight.shape[-1] // 2), scale
        )


class FactorizedSkip(nn.Module):
    """The skip connection at stride 2: half of the channels from even pixels, half from odd ones; BatchNorm.
    Its input is rectified."""

    def __init__(self, inp: int, out: int, edges: int, track: bool):
        super().__init__()
        self.edges = edges
        self.even = stacked(edges * out // 2, inp, 1)
        self.odd = stacked(edges * out // 2, inp, 1)
        self.norm = Norm(edges * out, track)

    def forward(
        self, x: Tensor, at: Sequence[int] = (0,), scale: Tensor | None = None, twice: bool = False
    ) -> Tensor:
        """x (N, I, H, W) -> (N, len(at) O, H / 2, W / 2), edge by edge."""
        # pixels are picked first: oneDNN's gradient of 1x1 at stride 2 corrupts memory for a few channels on
        # large maps
        halves = [
            F.conv2d(
                x[:, :, shift::2, shift::2].contiguous(memory_format=torch.channels_last),
                rows_of(weight, at, self.edges),
            )
            for shift, weight in enumerate((self.even, self.odd))
        ]
        blocks = [half.chunk(len(at), 1) for half in halves]
        return self.norm(torch.cat([part for pair in zip(*blocks, strict=True) for part in pair], 1), scale)


def own_weights(operation: str, channels: int, edges: int, stride: int, track: bool) -> nn.Module | None:
    """The module of an operation that has weights, for `edges` edges; None for one that has none."""
    match operation:
        case "sep_conv_3x3" | "sep_conv_5x5" | "dil_conv_3x3" | "dil_conv_5x5":
            return Separable(channels, edges, int(operation[-1]), stride, operation.startswith("dil"), track)
        case "nor_conv_1x1" | "nor_conv_3x3":
            return Convolution(channels, edges, int(operation[-1]), track)
        case "skip_connect" if stride == 2:
            return FactorizedSkip(channels, channels, edges, track)
    assert operation in ("none", *SHARED), operation
    return None


class Fan(nn.Module):
    """The edges that leave one state.

    Args:
        operations: the names of the columns of a mixture's weights.
        may: (n, O) booleans, which operation competes on which of the n edges.
        channels: C, of the state and of what the edges pass on.
        stride: 1 or 2.
        track: keep running statistics for evaluation.
        pool_norm: a BatchNorm after each pool.
        auxiliary: a further skip connection on each edge (DARTS-), which at stride 2 has weights.
    """

    def __init__(
        self,
        operations: tuple[str, ...],
        may: Tensor,
        channels: int,
        stride: int,
        track: bool,
        pool_norm: bool,
        auxiliary: bool = False,
    ):
        super().__init__()
        self.operations, self.channels, self.stride, self.edges = operations, channels, stride, len(may)
        self.where = {
            name: tuple(may[:, o].nonzero().flatten().tolist())
            for o, name in enumerate(operations)
            if name != "none"
        }
        self.own = nn.ModuleDict()
        self.pool_norm = nn.ModuleDict()
        for name, at in self.where.items():
            module = own_weights(name, channels, len(at), stride, track) if at else None
            if module is not None:
                self.own[name] = module
            elif "pool" in name and pool_norm:
                self.pool_norm[name] = Norm(channels, track)
        self.auxiliary = (
            FactorizedSkip(channels, channels, self.edges, track) if auxiliary and stride == 2 else None
        )

    def forward(
        self, x: Tensor, weight_nO: Tensor, runs: Runs | None, skip: Tensor | None, twice: bool
    ) -> list[Tensor]:
        """What each of the n edges passes on; (N, C, H / stride, W / stride) each."""
        rectified = F.relu(x)
        even = (
            rectified[:, :, ::2, ::2] if self.stride == 2 else rectified
        )  # all that a dilated convolution at stride 2 reads
        copied = functools.cache(
            lambda count, dilated: torch.cat([even if dilated else rectified] * count, 1)
        )
        whole: list[Tensor] = []  # terms of all edges, edge by edge
        terms: list[list[Tensor]] = [[] for _ in range(self.edges)]
        shared: list[tuple[Tensor, Tensor]] = []  # (what every edge reads, how much of it each takes)
        for name, allowed in self.where.items():
            column = self.operations.index(name)
            at = allowed if runs is None else tuple(p for p in allowed if column in runs[p])
            if not at:
                continue
            weight_n = weight_nO[:, column]
            everywhere = len(at) == self.edges
            if name in self.own:
                own = self.own[name]
                chosen = weight_n if everywhere else torch.stack([weight_n[p] for p in at])
                read = (
                    copied(len(at), own.dilated and self.stride == 2)
                    if isinstance(own, Separable)
                    else rectified
                )
                y = own(read, [allowed.index(p) for p in at], self._per_channel(chosen), twice)
                if everywhere:
                    whole.append(y)
                else:
                    _hand_out(y, at, terms)
            else:
                if not everywhere:
                    weight_n = torch.stack(
                        [weight_n[p] if p in at else weight_n.new_zeros(()) for p in range(self.edges)]
                    )
                shared.append((self._shared(name, x), weight_n))
        if skip is not None and self.auxiliary is not None:
            whole.append(
                self.auxiliary(rectified, range(self.edges), self._per_channel(skip.expand(self.edges)))
            )
        elif skip is not None:
            shared.append((x, skip.expand(self.edges)))
        if whole:
            _hand_out(total(whole), range(self.edges), terms)
        if shared:
            _hand_out_shared(shared, terms)
        shape = (len(x), self.channels, -(-x.shape[2] // self.stride), -(-x.shape[3] // self.stride))
        return [total(of_edge) if of_edge else x.new_zeros(shape) for of_edge in terms]

    def _per_channel(self, weight_n: Tensor) -> Tensor:
        return weight_n.repeat_interleave(
            self.channels
        )  # an expanded view would not do: torch's gradient reads it as if contiguous

    def _shared(self, name: str, x: Tensor) -> Tensor:
        match name:
            case "max_pool_3x3":
                x = F.max_pool2d(x, 3, self.stride, 1)
            case "avg_pool_3x3":
                x = average_pool(x, self.stride)
        return self.pool_norm[name](x) if name in self.pool_norm else x


def _hand_out(y: Tensor, at: Sequence[int], terms: list[list[Tensor]]) -> None:
    for position, part in zip(at, y.chunk(len(at), 1), strict=True):
        terms[position].append(part)


def _hand_out_shared(shared: list[tuple[Tensor, Tensor]], terms: list[list[Tensor]]) -> None:
    """Weighted sums of the same few maps for every edge, as one matrix product."""
    maps = torch.stack([map_.permute(0, 2, 3, 1) for map_, _ in shared])
    weight_nF = torch.stack([weight_n for _, weight_n in shared], 1)
    sums = (weight_nF @ maps.flatten(1)).view(-1, *maps.shape[1:]).permute(0, 1, 4, 2, 3)
    for of_edge, of_shared in zip(terms, sums.unbind(), strict=True):
        of_edge.append(of_shared)


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    if len(terms) == 1:
        return terms[0]
    result = terms[0] + terms[1]
    for term in terms[2:]:
        result += term
    return result
