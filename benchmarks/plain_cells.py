"""Search networks with one module per edge and operation, in ordinary torch layers, as reference codes have
them: what ours are compared and timed against."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import EdgeWeights
from oneshot.networks.edge_operations import Separable
from oneshot.networks.residual import ResidualBlock
from oneshot.networks.search import DartsNetwork, NasBench201Network
from oneshot.networks.search_cells import MixedNodes
from oneshot.spaces.cells import CellSpace


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def conv(
    inp: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


class Reduce(nn.Module):
    """Factorized reduction."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.even, self.odd, self.norm = conv(inp, out // 2, 1, 2), conv(inp, out // 2, 1, 2), bn(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """The operation none."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


def separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    return [nn.ReLU(), conv(c, c, kernel, stride, dilation, c), conv(c, c), bn(c)]


def operation(name: str, c: int, stride: int, pool_norm: bool) -> nn.Module:
    kernel = int(name[-1]) if name[-1].isdigit() else 0
    match name.split("_")[0]:
        case "none":
            return Zero(stride)
        case "max":
            return nn.Sequential(nn.MaxPool2d(3, stride, 1), *[bn(c)] * pool_norm)
        case "avg":
            return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), *[bn(c)] * pool_norm)
        case "skip":
            return Reduce(c, c) if stride == 2 else nn.Identity()
        case "sep":
            return nn.Sequential(*separable(c, kernel, stride, 1), *separable(c, kernel, 1, 1))
        case "dil":
            return nn.Sequential(*separable(c, kernel, stride, 2))
    return nn.Sequential(
        nn.ReLU(), conv(c, c, kernel), nn.BatchNorm2d(c, affine=False, track_running_stats=False)
    )


class Edge(nn.Module):
    """Every operation of one edge; the weighted sum."""

    def __init__(self, space: CellSpace, c: int, stride: int, partial: int):
        super().__init__()
        self.partial, self.stride = partial, stride
        self.operations = nn.ModuleList(
            operation(name, c // partial, stride, space.name == "darts") for name in space.operations
        )

    def forward(self, x: Tensor, weights: Tensor, chosen: int | None) -> Tensor:
        if chosen is not None:
            return sum(w * self.operations[chosen](x) if o == chosen else w for o, w in enumerate(weights))  # type: ignore[return-value]
        if self.partial == 1:
            return sum(w * op(x) for w, op in zip(weights, self.operations, strict=True))  # type: ignore[return-value]
        own = x.shape[1] // self.partial
        mixed = sum(w * op(x[:, :own]) for w, op in zip(weights, self.operations, strict=True))
        rest = F.max_pool2d(x[:, own:], 2, 2) if self.stride == 2 else x[:, own:]
        assert isinstance(mixed, Tensor)
        y = torch.cat([mixed, rest], 1)
        n, c, h, w_ = y.shape
        return y.view(n, self.partial, c // self.partial, h, w_).transpose(1, 2).reshape(n, c, h, w_)


class Cell(nn.Module):
    """The edges of one cell."""

    def __init__(self, space: CellSpace, kind: str, c: int, partial: int):
        super().__init__()
        self.space, self.kind = space, kind
        strides = [2 if kind == "reduce" and source < space.inputs else 1 for source, _ in space.edges]
        self.edges = nn.ModuleList(Edge(space, c, stride, partial) for stride in strides)

    def forward(self, states: list[Tensor], cell_weights: EdgeWeights) -> list[Tensor]:
        for into in self.space.entering:
            node: Tensor | int = 0
            for e in range(into.start, into.stop):
                chosen = None if cell_weights.active is None else cell_weights.active[e][0]
                y = self.edges[e](states[self.space.edges[e][0]], cell_weights.weight_EO[e], chosen)
                node = node + (y if cell_weights.edge_E is None else cell_weights.edge_E[e] * y)
            assert isinstance(node, Tensor)
            states = [*states, node]
        return states


class PlainDarts(nn.Module):
    """The DARTS network with everything but the cells' edges taken from `ours`."""

    def __init__(self, ours: DartsNetwork, partial: int):
        super().__init__()
        self.stem, self.classifier = (
            nn.Sequential(conv(3, 48, 3), nn.BatchNorm2d(48)),
            nn.Linear(ours.classifier.in_features, 10),
        )
        self.join, self.cells = nn.ModuleList(), nn.ModuleList()
        for cell in ours.cells:
            for join in cell.inputs:
                if join.skip is not None:
                    self.join.append(Reduce(join.skip.even.shape[1], join.skip.even.shape[0] * 2))
                else:
                    c = join.conv.weight.shape[:2]
                    self.join.append(nn.Sequential(nn.ReLU(), conv(c[1], c[0]), bn(c[0])))
            self.cells.append(
                Cell(cell.mixed.space, cell.kind, cell.mixed.parallel_edges[0].channels * partial, partial)
            )

    def forward(self, x: Tensor, edge_weights: dict[str, EdgeWeights], create_graph: bool = False) -> Tensor:
        before = last = self.stem(x)
        for number, cell in enumerate(self.cells):
            states = [self.join[2 * number](before), self.join[2 * number + 1](last)]
            before, last = last, torch.cat(cell(states, edge_weights[cell.kind])[2:], 1)
        return self.classifier(last.mean((2, 3)))


class Plain201(nn.Module):
    """The NAS-Bench-201 network."""

    def __init__(self, ours: NasBench201Network):
        super().__init__()
        self.stem, self.classifier = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16)), nn.Linear(64, 10)
        self.norm = nn.BatchNorm2d(64)
        self.blocks = nn.ModuleList(
            Cell(b.space, "cell", b.parallel_edges[0].channels, 1)
            if isinstance(b, MixedNodes)
            else ResidualBlock(b.conv1.in_channels, b.conv1.out_channels)
            for b in ours.blocks
        )

    def forward(self, x: Tensor, edge_weights: dict[str, EdgeWeights], create_graph: bool = False) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block([x], edge_weights["cell"])[-1] if isinstance(block, Cell) else block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))


def pairs(ours: nn.Module, plain: nn.Module) -> Iterator[tuple[nn.Parameter, int, int, nn.Parameter]]:
    """(our tensor, of how many blocks of rows, which block, the plain network's tensor)."""
    mixed = [module for module in ours.modules() if isinstance(module, MixedNodes)]
    cells = [module for module in plain.modules() if isinstance(module, Cell)]
    for m, cell in zip(mixed, cells, strict=True):
        for fan, leaving in zip(m.parallel_edges, m.leaving, strict=True):
            for name, own in fan.own.items():
                for position, e in enumerate(leaving):
                    theirs = cell.edges[e].operations[fan.operations.index(name)].parameters()
                    yield from (
                        (a, len(leaving), position, b) for a, b in zip(in_order(own), theirs, strict=True)
                    )
    joins = [join for cell in ours.cells for join in cell.inputs] if isinstance(ours, DartsNetwork) else []
    for join, module in zip(joins, getattr(plain, "join", []), strict=True):
        yield from ((a, 1, 0, b) for a, b in zip(join.parameters(), module.parameters(), strict=True))
    named = dict(plain.named_parameters())
    yield from (
        (p, 1, 0, named[name])
        for name, p in ours.named_parameters()
        if not any(part in name for part in ("parallel_edges", "inputs"))
    )


def in_order(own: nn.Module) -> list[nn.Parameter]:
    if isinstance(own, Separable):
        return [weight for pair in zip(own.depth, own.point, strict=True) for weight in pair]
    return list(own.parameters())
