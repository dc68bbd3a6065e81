"""The cells of the plain network of a DARTS-space genotype, and the layers that they are made of."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from oneshot.spaces.cells import NOISE
from oneshot.spaces.genotype import Cell
from oneshot.spaces.own_operations import Constructors, build_own_operation

KERNEL = {"sep_conv_3x3": 3, "sep_conv_5x5": 5, "sep_conv_7x7": 7, "dil_conv_3x3": 3, "dil_conv_5x5": 5}


class ConvNorm(nn.Sequential):
    """Convolutions, one after another, then BatchNorm."""

    def __init__(self, *convs: nn.Conv2d):
        super().__init__(*convs, nn.BatchNorm2d(convs[-1].out_channels))


class Reduce(nn.Module):
    """Half the side: 1x1 convolutions of stride 2 of x and of x shifted by one pixel, concatenated.

    Each has a BatchNorm. The published one BatchNorm after the concatenation is the same, since it works by
    channel; these two fold into the convolutions.
    """

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.here = ConvNorm(conv(inp, out // 2, 1, 2))
        self.shifted = ConvNorm(conv(inp, out - out // 2, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H / 2, W / 2), rounded up."""
        odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
        # The shifted convolution reads one pixel less: an odd side gets a row of zeros, so that both fit.
        shifted = F.pad(x, (0, odd_w, 0, odd_h)) if odd_h or odd_w else x
        return torch.cat([self.here(x), self.shifted(shifted[:, :, 1:, 1:])], 1)


def conv(inp: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the side, but for its stride."""
    return nn.Conv2d(inp, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def build_operation(name: str, width: int, stride: int) -> nn.Module:
    """An operation of an edge.

    All but pools and the identity expect an input after ReLU, which the cell shares among them.
    """
    match name:
        case "skip_connect":
            return nn.Identity() if stride == 1 else Reduce(width, width)
        case "max_pool_3x3":
            return nn.MaxPool2d(3, stride, 1)
        case "avg_pool_3x3":
            # As published: at the border the mean is over the pixels of the map only.
            return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        case "conv_7x1_1x7":
            # Two convolutions in a row without anything between: one BatchNorm follows both.
            row = nn.Conv2d(width, width, (1, 7), (1, stride), (0, 3), bias=False)
            column = nn.Conv2d(width, width, (7, 1), (stride, 1), (3, 0), bias=False)
            return ConvNorm(row, column)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return ConvNorm(conv(width, width, KERNEL[name], stride, 2, width), conv(width, width, 1))
    kernel = KERNEL[name]
    first = ConvNorm(conv(width, width, kernel, stride, 1, width), conv(width, width, 1))
    second = ConvNorm(conv(width, width, kernel, 1, 1, width), conv(width, width, 1))
    return nn.Sequential(first, nn.ReLU(), second)


class OwnOperation(nn.Sequential):
    """An operation of a user's own, which begins with a ReLU itself if it wants one."""


# All other operations begin with a ReLU in the published cells; these do not.
READ_BEFORE_RELU = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d, OwnOperation)


class FinalCell(nn.Module):
    """One cell of a network.

    Args:
        cell: what its edges are.
        inputs: channels of the outputs of the two cells before.
        width: channels of each of its nodes.
        stride: of the edges that leave its inputs.
        halved: whether the cell before was of stride 2, so that the one before that has a map of twice the
            side.
        constructors: of operations that are a user's own.

    Raises:
        UserError: a node that is read or returned has no edge but `none`.
    """

    def __init__(
        self,
        cell: Cell,
        inputs: tuple[int, int],
        width: int,
        stride: int,
        halved: bool,
        constructors: Constructors = (),
    ):
        super().__init__()
        own = dict(constructors)
        _check(cell)
        self.before = Reduce(inputs[0], width) if halved else ConvNorm(conv(inputs[0], width, 1))
        self.last = ConvNorm(conv(inputs[1], width, 1))
        self.operations = nn.ModuleList()
        self.dropped: list[bool] = []  # for each edge whether drop-path may drop it
        self.sources: list[list[int]] = []  # for each node the states that its edges read
        self.output = cell.output
        for every_edge in cell.nodes:
            # An edge that is `none` adds zeros to its node: nothing is built for it.
            edges = [edge for edge in every_edge if edge[0] != "none"]
            self.sources.append([source for _, source in edges])
            for name, source in edges:
                edge_stride = stride if source < 2 else 1
                operation: nn.Module
                if name in own:
                    operation = OwnOperation(build_own_operation(own[name], width, edge_stride))
                else:
                    operation = build_operation(name, width, edge_stride)
                self.operations.append(operation)
                # The published codes never drop the identity, but they drop a skip of stride 2.
                self.dropped.append(name != "skip_connect" or edge_stride > 1)

    def forward(self, before: Tensor, last: Tensor, keep: Sequence[Tensor] | None = None) -> Tensor:
        """The output of the cell from those of the two cells before it, after ReLU.

        Args:
            keep: for each edge that may be dropped, in order, its factors (N, 1, 1, 1).
        """
        states = [self.before(before), self.last(last)]
        rectified: dict[int, Tensor] = {}  # the states after ReLU, each computed once
        edges = zip(self.operations, self.dropped, strict=True)
        factors = iter(keep or ())
        for sources in self.sources:
            node: Tensor | None = None
            # zip asks `sources` first, so it takes from `edges` those of this node and no more.
            for source, (operation, dropped) in zip(sources, edges, strict=False):
                x = states[source]
                if not isinstance(operation, READ_BEFORE_RELU):
                    if source not in rectified:
                        rectified[source] = x.relu()
                    x = rectified[source]
                y = operation(x)
                if keep is not None and dropped:
                    factor = next(factors)
                    node = y * factor if node is None else torch.addcmul(node, y, factor)
                else:
                    node = y if node is None else node + y
            states.append(states[0] if node is None else node)  # nobody reads a node without edges
        return torch.cat([states[state] for state in self.output], 1)


def _check(cell: Cell) -> None:
    read = {source for edges in cell.nodes for _, source in edges} | set(cell.output)
    for number, edges in enumerate(cell.nodes, start=2):
        if any(name == NOISE for name, _ in edges):
            raise UserError(
                f"Node {number} of the genotype has the operation 'noise', which no network is trained with; "
                "space darts_s4 is for the study of searches: count how often noise was chosen."
            )
        if all(name == "none" for name, _ in edges) and number in read:
            raise UserError(
                f"Node {number} of the genotype has no edge, or none but 'none', but is read; leave it out "
                "of the output and of other nodes."
            )
