"""Search networks: functions of (images, mixtures). No architecture parameters live in them.

DARTS (2019, arXiv:1806.09055), with PC-DARTS's partial channels (2020, arXiv:1907.05737), and NAS-Bench-201
(2020, arXiv:2001.00326).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import Mixture
from oneshot.networks.parallel_edges import FactorizedSkip, Fan, Norm, total
from oneshot.spaces.cells import CellSpace


class Mixed(nn.Module):
    """The nodes of one cell: each is the sum of what its edges pass on.

    Args:
        space: whose graph and operations.
        kind: of cell: `normal`, `reduce` or `cell`.
        channels: C, of every state.
        partial: K of PC-DARTS: C / K channels go through the operations, the others pass by; then channels
            are shuffled. 1: all.
        track: keep running statistics for evaluation.
        pool_norm: a BatchNorm after each pool.
        auxiliary: room for the skip connection beside the mixture (DARTS-).
    """

    by_source: Tensor

    def __init__(
        self,
        space: CellSpace,
        kind: str,
        channels: int,
        partial: int,
        track: bool,
        pool_norm: bool,
        auxiliary: bool,
    ):
        super().__init__()
        self.space, self.partial, self.halves = space, partial, kind == "reduce"
        leaving = [
            [e for e, (source, _) in enumerate(space.edges) if source == state]
            for state in range(space.inputs + space.nodes - 1)
        ]
        self.leaving = leaving
        self.fans = nn.ModuleList(
            Fan(
                space.operations,
                space.may(kind)[edges],
                channels // partial,
                self._stride(state),
                track,
                pool_norm,
                auxiliary,
            )
            for state, edges in enumerate(leaving)
        )
        self.register_buffer(
            "by_source", torch.tensor([e for edges in leaving for e in edges]), persistent=False
        )

    def _stride(self, state: int) -> int:
        return 2 if self.halves and state < self.space.inputs else 1

    def forward(self, states: list[Tensor], mixture: Mixture, twice: bool) -> list[Tensor]:
        """The input states -> all states, input states first."""
        weight_EO = (
            mixture.weight_EO if mixture.edge_E is None else mixture.weight_EO * mixture.edge_E[:, None]
        )
        weights = weight_EO[self.by_source].split_with_sizes([len(edges) for edges in self.leaving])
        states = list(states)
        arriving: dict[int, list[Tensor]] = {}
        passing: dict[int, list[Tensor]] = {}
        for state, (fan, edges) in enumerate(zip(self.fans, self.leaving, strict=True)):
            x = states[state]
            if self.partial > 1:
                own = x.shape[1] // self.partial
                x, rest = x[:, :own].contiguous(memory_format=torch.channels_last), x[:, own:]
                rest = F.max_pool2d(rest, 2, 2) if self._stride(state) == 2 else rest
                for e in edges:
                    passing.setdefault(self.space.edges[e][1], []).append(
                        rest if mixture.edge_E is None else rest * mixture.edge_E[e]
                    )
            runs = None if mixture.runs is None else tuple(mixture.runs[e] for e in edges)
            for e, passed in zip(edges, fan(x, weights[state], runs, mixture.skip, twice), strict=True):
                arriving.setdefault(self.space.edges[e][1], []).append(passed)
            target = state + 1
            if target >= self.space.inputs:
                states.append(
                    self._node(target, arriving.pop(target), passing.pop(target, []), mixture.offset_E)
                )
        return states

    def _node(
        self, target: int, arriving: list[Tensor], passing: list[Tensor], offset_E: Tensor | None
    ) -> Tensor:
        """The sum of what arrives at state `target`, all edges into which are computed by now."""
        node = total(arriving)
        if offset_E is not None:
            node = node + offset_E[self.space.entering[target - self.space.inputs]].sum()
        return shuffle(torch.cat([node, total(passing)], 1), self.partial) if passing else node


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel c of group g becomes channel g of block c (PC-DARTS)."""
    count, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, groups, channels // groups).transpose(3, 4)
    return x.reshape(count, height, width, channels).permute(0, 3, 1, 2)


class Join(nn.Module):
    """Brings a rectified input state to a cell's channels: 1x1 convolution, BatchNorm; half the size where
    the cell before halved it."""

    def __init__(self, inp: int, out: int, halves: bool, track: bool):
        super().__init__()
        self.conv = None if halves else nn.Conv2d(inp, out, 1, bias=False)
        self.skip = FactorizedSkip(inp, out, 1, track) if halves else None
        self.norm = None if halves else Norm(out, track)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H, W), or (N, O, H / 2, W / 2)."""
        if self.skip is not None:
            return self.skip(x)
        assert self.conv is not None and self.norm is not None
        return self.norm(self.conv(x))


class DartsCell(nn.Module):
    """One cell of the DARTS space: reads the two cells before it and concatenates its nodes."""

    def __init__(
        self,
        space: CellSpace,
        kind: str,
        inp: tuple[int, int],
        channels: int,
        after_reduction: bool,
        partial: int,
        track: bool,
        pool_norm: bool,
        auxiliary: bool,
    ):
        super().__init__()
        self.kind = kind
        self.join = nn.ModuleList(
            [Join(inp[0], channels, after_reduction, track), Join(inp[1], channels, False, track)]
        )
        self.mixed = Mixed(space, kind, channels, partial, track, pool_norm, auxiliary)

    def forward(self, before: Tensor, last: Tensor, mixture: Mixture, twice: bool) -> Tensor:
        """Of the outputs of the two cells before, rectified."""
        states = [join(x) for join, x in zip(self.join, (before, last), strict=True)]
        return torch.cat(self.mixed(states, mixture, twice)[2:], 1)


class DartsNetwork(nn.Module):
    """DARTS's search network: stem, cells of which those at a third and two thirds halve the map, linear
    classifier.

    Args:
        space: `darts` or one with its graph.
        channels: of the first cells' states; doubled at each reduction.
        cells: how many.
        classes: K.
        inputs: channels of an image.
        partial, track, pool_norm, auxiliary: see `Mixed`.
        last_norm: a BatchNorm and a ReLU before the classifier, as in PR-DARTS's code.
    """

    def __init__(
        self,
        space: CellSpace,
        channels: int = 16,
        cells: int = 8,
        classes: int = 10,
        inputs: int = 3,
        partial: int = 1,
        track: bool = True,
        pool_norm: bool = True,
        auxiliary: bool = False,
        last_norm: bool = False,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels)
        )
        self.cells = nn.ModuleList()
        widths = (3 * channels, 3 * channels)
        after_reduction = False
        for number in range(cells):
            kind = "reduce" if number in (cells // 3, 2 * cells // 3) else "normal"
            channels *= 2 if kind == "reduce" else 1
            self.cells.append(
                DartsCell(
                    space, kind, widths, channels, after_reduction, partial, track, pool_norm, auxiliary
                )
            )
            after_reduction = kind == "reduce"
            widths = (widths[1], space.nodes * channels)
        self.norm = nn.BatchNorm2d(widths[1]) if last_norm else None
        self.classifier = nn.Linear(widths[1], classes)

    def forward(self, x_NCHW: Tensor, mixtures: Mapping[str, Mixture], twice: bool = False) -> Tensor:
        """Logits (N, K). twice: whether the result will be differentiated twice, which the fast gradients are
        not made for."""
        state, before = self.stem(x_NCHW), None
        for cell in self.cells:
            last = F.relu(state)
            state = cell(last if before is None else before, last, mixtures[str(cell.kind)], twice)
            before = last
        state = state if self.norm is None else F.relu(self.norm(state))
        return self.classifier(state.mean((2, 3)))


class Residual(nn.Module):
    """The block between NAS-Bench-201's stages: half the size, twice the channels."""

    def __init__(self, inp: int):
        super().__init__()
        self.conv = nn.Conv2d(inp, 2 * inp, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * inp)
        self.conv2 = nn.Conv2d(2 * inp, 2 * inp, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * inp)
        self.shortcut = nn.Conv2d(inp, 2 * inp, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2 C, H / 2, W / 2)."""
        residual = self.bn2(self.conv2(F.relu(self.bn(self.conv(F.relu(x))))))
        return residual + self.shortcut(F.avg_pool2d(x, 2, 2))


class NasBench201Network(nn.Module):
    """NAS-Bench-201's search network: three stages of `cells` cells.

    Args:
        space: `nasbench201`.
        channels: C of the first stage; doubled after each.
        cells: N, in each stage.
        classes: K.
        inputs: channels of an image.
        partial, track, auxiliary: see `Mixed`. The published searches take batch statistics always.
    """

    def __init__(
        self,
        space: CellSpace,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        inputs: int = 3,
        partial: int = 1,
        track: bool = False,
        auxiliary: bool = False,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(Residual(channels))
                channels *= 2
            self.blocks.extend(
                Mixed(space, "cell", channels, partial, track, False, auxiliary) for _ in range(cells)
            )
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x_NCHW: Tensor, mixtures: Mapping[str, Mixture], twice: bool = False) -> Tensor:
        """Logits (N, K). twice: whether the result will be differentiated twice, which the fast gradients are
        not made for."""
        x = self.stem(x_NCHW)
        for block in self.blocks:
            x = block([x], mixtures["cell"], twice)[-1] if isinstance(block, Mixed) else block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))
