"""Operations with weights of their own, each for several edges at once.

The weights of n edges are stacked, C rows for each edge. BatchNorm works by channel, so the n of them are
one, whose scale carries the weights of the operation on its edges. `positions` are the edges that run, among
those that a module has weights for.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.fast import depthwise, grouped_pointwise, torch_depthwise
from oneshot.spaces.cells import NOISE
from oneshot.spaces.own_operations import build_own_operation

EPSILON = 1e-5  # of BatchNorm
WITHOUT_WEIGHTS = ("skip_connect", "max_pool_3x3", "avg_pool_3x3")  # the same for every edge


def stacked(rows: int, columns: int, kernel: int) -> nn.Parameter:
    """Weights (rows, columns, kernel, kernel), initialised as nn.Conv2d does."""
    weight = nn.Parameter(torch.empty(rows, columns, kernel, kernel))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def rows_of(weight: Tensor, positions: Sequence[int], edges: int) -> Tensor:
    """The rows of the edges at `positions` among `edges`."""
    if len(positions) == edges:
        return weight
    blocks = weight.chunk(edges)
    return torch.cat([blocks[position] for position in positions])


class Norm(nn.Module):
    """BatchNorm without weights of its own.

    For some of its channels only, as in a sampled network, it always takes the batch's statistics.
    """

    mean: Tensor | None
    var: Tensor | None

    def __init__(self, channels: int, track: bool):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels) if track else None)
        self.register_buffer("var", torch.ones(channels) if track else None)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) normalised, times `scale` (C,)."""
        # A sampled network normalises some edges' channels only: their statistics are not those of the whole.
        tracked = self.mean is not None and len(self.mean) == x.shape[1]
        mean, var = (self.mean, self.var) if tracked else (None, None)
        return F.batch_norm(x, mean, var, scale, None, self.training or not tracked, 0.1, EPSILON)


class Separable(nn.Module):
    """(ReLU, depthwise, pointwise, BatchNorm): two of them for sep_conv, one with dilation 2 for dil_conv."""

    def __init__(self, channels: int, edges: int, kernel: int, stride: int, dilated: bool, track: bool):
        super().__init__()
        self.edges, self.stride, self.dilated = edges, stride, dilated
        passes = 1 if dilated else 2
        self.depth = nn.ParameterList(stacked(edges * channels, 1, kernel) for _ in range(passes))
        self.point = nn.ParameterList(stacked(edges * channels, channels, 1) for _ in range(passes))
        self.norm = nn.ModuleList(Norm(edges * channels, track) for _ in range(passes))

    def forward(self, x: Tensor, positions: Sequence[int], scale: Tensor, create_graph: bool) -> Tensor:
        """The outputs of the n edges that run: (N, n C, H, W), or with halved sides at stride 2.

        Args:
            x: (N, n C, H, W), the rectified state, copied for each edge. At stride 2 a dilated convolution
                reads even rows and columns only. It is given only those, of which it is a dense convolution.
            positions: the edges that run, among those that have weights here.
            scale: (n C,) factors of the output, by channel.
            create_graph: whether the result will be differentiated twice.
        """
        stride = 1 if self.dilated else self.stride
        dilation = 2 if self.dilated and self.stride == 1 else 1
        # The fast gradient of a depthwise convolution has no gradient in turn; torch's has.
        convolve = torch_depthwise if create_graph else depthwise
        last = len(self.norm) - 1
        for number, (depth, point, norm) in enumerate(zip(self.depth, self.point, self.norm, strict=True)):
            if number:
                # In place, since nobody else reads the output of the first half.
                x, stride = F.relu(x, inplace=True), 1
            x = convolve(x, rows_of(depth, positions, self.edges), stride, dilation)
            x = grouped_pointwise(x, rows_of(point, positions, self.edges), len(positions))
            x = norm(x, scale if number == last else None)
        return x


class Convolution(nn.Module):
    """ReLU, convolution, BatchNorm (NAS-Bench-201). Before a BatchNorm a bias would do nothing."""

    def __init__(self, channels: int, edges: int, kernel: int, track: bool):
        super().__init__()
        self.edges = edges
        self.weight = stacked(edges * channels, channels, kernel)
        self.norm = Norm(edges * channels, track)

    def forward(self, x: Tensor, positions: Sequence[int], scale: Tensor, create_graph: bool) -> Tensor:
        """(N, n C, H, W), edge by edge, of the rectified state x (N, C, H, W)."""
        weight = rows_of(self.weight, positions, self.edges)
        return self.norm(F.conv2d(x, weight, padding=self.weight.shape[-1] // 2), scale)


class FactorizedSkip(nn.Module):
    """The skip connection at stride 2: half of the channels from even pixels, half from odd; BatchNorm."""

    def __init__(self, inp: int, out: int, edges: int, track: bool):
        super().__init__()
        self.edges = edges
        self.even = stacked(edges * out // 2, inp, 1)
        self.odd = stacked(edges * out // 2, inp, 1)
        self.norm = Norm(edges * out, track)

    def forward(
        self,
        x: Tensor,
        positions: Sequence[int] = (0,),
        scale: Tensor | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """(N, n O, H / 2, W / 2), edge by edge, of the rectified state x (N, I, H, W); sides rounded up."""
        even = self._half(x, self.even, 0, positions)
        odd = self._half(x, self.odd, 1, positions)
        blocks = []
        for even_block, odd_block in zip(even, odd, strict=True):
            blocks += [even_block, odd_block]
        return self.norm(torch.cat(blocks, 1), scale)

    def _half(self, x: Tensor, weight: Tensor, shift: int, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """One half of each edge's channels."""
        # An odd side has one odd pixel less than even ones: it gets a row of zeros, so that both fit.
        odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
        if shift and (odd_h or odd_w):
            x = F.pad(x, (0, odd_w, 0, odd_h))
        # Pixels are picked first: oneDNN's gradient of a 1x1 convolution at stride 2 corrupts memory for a
        # few channels on large maps.
        picked = x[:, :, shift::2, shift::2].contiguous(memory_format=torch.channels_last)
        return F.conv2d(picked, rows_of(weight, positions, self.edges)).chunk(len(positions), 1)


class OwnOperations(nn.Module):
    """An operation of a user's own: a module for each edge."""

    def __init__(self, location: str, channels: int, edges: int, stride: int):
        super().__init__()
        self.edge = nn.ModuleList(build_own_operation(location, channels, stride) for _ in range(edges))

    def forward(self, x: Tensor, positions: Sequence[int], scale: Tensor, create_graph: bool) -> Tensor:
        """(N, n C, H, W) of the state x (N, C, H, W), as it is: without a ReLU."""
        return torch.cat([self.edge[position](x) for position in positions], 1) * scale[:, None, None]


def build_edge_operation(
    operation: str, channels: int, edges: int, stride: int, track: bool
) -> nn.Module | None:
    """The module of an operation that has weights, for `edges` edges; None for one that has none."""
    match operation:
        case "sep_conv_3x3" | "sep_conv_5x5" | "dil_conv_3x3" | "dil_conv_5x5":
            return Separable(channels, edges, int(operation[-1]), stride, operation.startswith("dil"), track)
        case "nor_conv_1x1" | "nor_conv_3x3":
            return Convolution(channels, edges, int(operation[-1]), track)
        case "skip_connect" if stride == 2:
            return FactorizedSkip(channels, channels, edges, track)
    assert operation in ("none", NOISE, *WITHOUT_WEIGHTS), operation
    return None
