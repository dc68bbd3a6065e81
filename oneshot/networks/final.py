"""The plain network of a DARTS-space genotype, to be trained from scratch: ordinary layers, as torch, ONNX
and others take them.

DARTS: Differentiable Architecture Search (2019, arXiv:1806.09055), evaluation networks for CIFAR and
ImageNet; parameters and multiply-accumulates equal those of its code. Differs: one ReLU per tensor serves all
that read it; maps of odd side can be halved; the auxiliary head takes maps of any side, not only 8 x 8
(CIFAR) and 7 x 7 (ImageNet).
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from oneshot.spaces import genotype as genotypes
from oneshot.spaces.genotype import Genotype

Stem = Literal["cifar", "imagenet"]
KERNEL = {"sep_conv_3x3": 3, "sep_conv_5x5": 5, "sep_conv_7x7": 7, "dil_conv_3x3": 3, "dil_conv_5x5": 5}


class ConvBN(nn.Sequential):
    """Convolutions, one after another, then BatchNorm."""

    def __init__(self, *convs: nn.Conv2d):
        super().__init__(*convs, nn.BatchNorm2d(convs[-1].out_channels))


class Reduce(nn.Module):
    """Half the side: 1x1 convolutions of stride 2 of x and of x shifted by one pixel, each with BatchNorm,
    concatenated.

    The published one BatchNorm after the concatenation is the same, since it works by channel; these two fold
    into the convolutions.
    """

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.here = ConvBN(conv(inp, out // 2, 1, 2))
        self.shifted = ConvBN(conv(inp, out - out // 2, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
        shifted = F.pad(x, (0, odd_w, 0, odd_h)) if odd_h or odd_w else x
        return torch.cat([self.here(x), self.shifted(shifted[:, :, 1:, 1:])], 1)


def conv(inp: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the side, but for its stride."""
    return nn.Conv2d(inp, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def build_operation(name: str, width: int, stride: int) -> nn.Module:
    """An operation of an edge. All but pools and the identity expect an input after ReLU, which the cell
    shares among them."""
    match name:
        case "skip_connect":
            return nn.Identity() if stride == 1 else Reduce(width, width)
        case "max_pool_3x3":
            return nn.MaxPool2d(3, stride, 1)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        case "conv_7x1_1x7":
            row = nn.Conv2d(width, width, (1, 7), (1, stride), (0, 3), bias=False)
            column = nn.Conv2d(width, width, (7, 1), (stride, 1), (3, 0), bias=False)
            return ConvBN(row, column)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return ConvBN(conv(width, width, KERNEL[name], stride, 2, width), conv(width, width, 1))
        case _:
            halves = [
                ConvBN(conv(width, width, KERNEL[name], s, 1, width), conv(width, width, 1))
                for s in (stride, 1)
            ]
            return nn.Sequential(halves[0], nn.ReLU(), halves[1])


PLAIN = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d)  # they read a state before its ReLU


class Cell(nn.Module):
    """One cell of a network.

    Args:
        cell: what its edges are.
        inputs: channels of the outputs of the two cells before.
        width: channels of each of its nodes.
        stride: of the edges that leave its inputs.
        halved: whether the cell before was of stride 2, so that the one before that has a map of twice the
            side.

    Raises:
        UserError: an edge is `none`, or a node that is read or returned has no edge.
    """

    def __init__(self, cell: genotypes.Cell, inputs: tuple[int, int], width: int, stride: int, halved: bool):
        super().__init__()
        _check(cell)
        self.before = Reduce(inputs[0], width) if halved else ConvBN(conv(inputs[0], width, 1))
        self.last = ConvBN(conv(inputs[1], width, 1))
        strides = [(name, stride if source < 2 else 1) for edges in cell.nodes for name, source in edges]
        self.operations = nn.ModuleList(build_operation(name, width, s) for name, s in strides)
        self.dropped = [
            name != "skip_connect" or s > 1 for name, s in strides
        ]  # the identity is never dropped
        self.sources, self.output = [[source for _, source in edges] for edges in cell.nodes], cell.output

    def forward(self, before: Tensor, last: Tensor, keep: Iterator[Tensor] | None = None) -> Tensor:
        """The output of the cell from those of the two before it, after ReLU. keep: factors (N, 1, 1, 1) of
        the edges to be dropped."""
        states = [self.before(before), self.last(last)]
        rectified: dict[int, Tensor] = {}
        edges = zip(self.operations, self.dropped, strict=True)
        for sources in self.sources:
            node: Tensor | None = None
            for source, (operation, dropped) in zip(sources, edges, strict=False):
                x = states[source]
                if not isinstance(operation, PLAIN):
                    x = rectified[source] if source in rectified else rectified.setdefault(source, x.relu())
                y = operation(x)
                if keep is not None and dropped:
                    factor = next(keep)
                    node = y * factor if node is None else torch.addcmul(node, y, factor)
                else:
                    node = y if node is None else node + y
            states.append(states[0] if node is None else node)  # nobody reads a node without edges
        return torch.cat([states[state] for state in self.output], 1)


def _check(cell: genotypes.Cell) -> None:
    read = {source for edges in cell.nodes for _, source in edges} | set(cell.output)
    for number, edges in enumerate(cell.nodes, start=2):
        if any(name == "none" for name, _ in edges):
            raise UserError(
                f"Node {number} of the genotype has the operation 'none', which a network cannot train; "
                "leave that edge out."
            )
        if not edges and number in read:
            raise UserError(
                f"Node {number} of the genotype has no edge but is read; leave it out of the output and of "
                "other nodes."
            )


class Auxiliary(nn.Module):
    """A second classifier on the map after two thirds of the network, in training only. side of its input:
    any."""

    def __init__(self, inp: int, classes: int, last_bn: bool):
        super().__init__()
        self.reduce = ConvBN(nn.Conv2d(inp, 128, 1, bias=False))
        square = nn.Conv2d(128, 768, 2, bias=False)
        self.square = ConvBN(square) if last_bn else square
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) from a map after ReLU."""
        side = x.shape[-1]
        # Of 8 x 8 and 7 x 7 maps the published codes average four overlapping windows of 5 x 5.
        x = F.avg_pool2d(x, 5, side - 5) if 6 <= side <= 8 else F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.square(self.reduce(x).relu()).relu().flatten(1))


class FinalNetwork(nn.Module):
    """The network of a DARTS-space genotype.

    Args:
        genotype: its cells.
        channels: width of the nodes of the first cells; doubled at a third and at two thirds of the cells.
        cells: how many.
        classes: logits.
        inputs: channels of an image.
        stem: one convolution (cifar), or three of stride 2 (imagenet).
        auxiliary: whether it has the second classifier.
        auxiliary_bn: whether that ends with a BatchNorm; None: as the published codes, which lost it on
            ImageNet.

    Raises:
        UserError: the genotype is of another space, or its cells compute nothing.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        cells: int = 20,
        classes: int = 10,
        inputs: int = 3,
        stem: Stem = "cifar",
        auxiliary: bool = False,
        auxiliary_bn: bool | None = None,
    ):
        super().__init__()
        if not genotype.space.startswith("darts"):
            raise UserError(f"This network is of genotypes of the space 'darts', not '{genotype.space}'.")
        stages: list[nn.Module] = [ConvBN(conv(inputs, 3 * channels, 3))]
        if stem == "imagenet":
            stages = [
                ConvBN(conv(inputs, channels // 2, 3, 2)),
                nn.ReLU(),
                ConvBN(conv(channels // 2, channels, 3, 2)),
            ]
        self.stem = nn.Sequential(*stages)
        self.second = ConvBN(conv(channels, channels, 3, 2)) if stem == "imagenet" else None
        before = last = channels if stem == "imagenet" else 3 * channels
        halved, width, self.attached_at = stem == "imagenet", channels, 2 * cells // 3
        self.cells = nn.ModuleList()
        for number in range(cells):
            reduces = number in (cells // 3, self.attached_at)
            width, stride = (2 * width, 2) if reduces else (width, 1)
            cell = genotype.cells["reduce" if reduces else "normal"]
            self.cells.append(Cell(cell, (before, last), width, stride, halved))
            before, last, halved = last, len(cell.output) * width, reduces
            if auxiliary and number == self.attached_at:
                last_bn = stem == "cifar" if auxiliary_bn is None else auxiliary_bn
                head = Auxiliary(last, classes, last_bn)
        self.auxiliary = head if auxiliary else None
        self.classifier = nn.Linear(last, classes)

    def forward(
        self, x: Tensor, drop: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, classes) of images (N, inputs, side, side); in training mode with an auxiliary head, its
        logits, too.

        drop: probability that an edge gives nothing for an image (drop-path, FractalNet, 2017,
            arXiv:1605.07648), in training
        mode. The identity is never dropped; what is kept is scaled up.
        """
        x = self.stem(x)
        keep = self._draw(drop, x, generator) if self.training and drop > 0 else None
        before = last = x.relu()
        if self.second is not None:
            last = self.second(before).relu()
        auxiliary = None
        for number, cell in enumerate(self.cells):
            x = cell(before, last, keep)
            before, last = last, x.relu()
            if self.auxiliary is not None and self.training and number == self.attached_at:
                auxiliary = self.auxiliary(last)
        logits = self.classifier(x.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)

    def _draw(self, drop: float, x: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
        """For each edge that may be dropped, in order, its factor for each image (N, 1, 1, 1): one draw for
        all."""
        edges = sum(sum(cell.dropped) for cell in self.cells if isinstance(cell, Cell))
        shape = (edges, len(x), 1, 1, 1)
        kept = torch.rand(shape, generator=generator, device=x.device) >= drop
        return iter((kept.to(x.dtype) / (1 - drop)).unbind())
