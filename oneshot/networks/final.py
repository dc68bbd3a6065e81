"""The plain network of a DARTS-space genotype, to be trained from scratch.

It has ordinary layers only, as torch, ONNX and others take them.

DARTS: Differentiable Architecture Search (2019, arXiv:1806.09055), evaluation networks for CIFAR and
ImageNet; parameters and multiply-accumulates equal those of its code. Differs: one ReLU per tensor serves all
that read it; maps of odd side can be halved; the auxiliary head takes maps of any side, not only 8 x 8
(CIFAR) and 7 x 7 (ImageNet).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from oneshot.networks.final_cells import ConvNorm, FinalCell, conv
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Genotype

StemName = Literal["cifar", "imagenet"]


class Auxiliary(nn.Module):
    """A second classifier on the map after two thirds of the network, in training only.

    Args:
        inp: channels of the map, whose side may be any.
        classes: logits.
        last_bn: whether its last convolution has a BatchNorm.
    """

    def __init__(self, inp: int, classes: int, last_bn: bool):
        super().__init__()
        self.reduce = ConvNorm(nn.Conv2d(inp, 128, 1, bias=False))
        square = nn.Conv2d(128, 768, 2, bias=False)
        self.square = ConvNorm(square) if last_bn else square
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) from a map after ReLU."""
        side = x.shape[-1]
        # On maps of 8 x 8 and 7 x 7 the published codes average four overlapping windows of 5 x 5. Maps of
        # other sides, for which that has no meaning, are divided into four parts.
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
        stem: StemName = "cifar",
        auxiliary: bool = False,
        auxiliary_bn: bool | None = None,
    ):
        super().__init__()
        space = find_space(genotype.space)
        if space.graph != "darts":
            raise UserError(f"This network is of genotypes of the space 'darts', not '{genotype.space}'.")
        large = stem == "imagenet"
        before = last = channels if large else 3 * channels
        self.second: ConvNorm | None = None  # a stage of the large stem whose input the first cell reads, too
        if large:
            first = ConvNorm(conv(inputs, channels // 2, 3, 2))
            self.stem = nn.Sequential(first, nn.ReLU(), ConvNorm(conv(channels // 2, channels, 3, 2)))
            self.second = ConvNorm(conv(channels, channels, 3, 2))
        else:
            self.stem = nn.Sequential(ConvNorm(conv(inputs, 3 * channels, 3)))
        self.attached_at = 2 * cells // 3  # the cell that the auxiliary head reads
        self.cells = nn.ModuleList()
        self.auxiliary: Auxiliary | None = None
        halved, width = large, channels
        for number in range(cells):
            reduces = number in (cells // 3, self.attached_at)
            width, stride = (2 * width, 2) if reduces else (width, 1)
            cell = genotype.cells["reduce" if reduces else "normal"]
            self.cells.append(FinalCell(cell, (before, last), width, stride, halved, space.constructors))
            # A cell returns its nodes concatenated.
            before, last, halved = last, len(cell.output) * width, reduces
            if auxiliary and number == self.attached_at:
                last_bn = not large if auxiliary_bn is None else auxiliary_bn
                head = Auxiliary(last, classes, last_bn)
        # The head is registered after all cells: the optimiser and a checkpoint keep this order.
        if auxiliary:
            self.auxiliary = head
        self.classifier = nn.Linear(last, classes)

    def forward(
        self, x: Tensor, drop: float | Tensor = 0.0, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, classes); in training mode with an auxiliary head, also the logits of that.

        Args:
            x: images (N, inputs, side, side).
            drop: probability that an edge gives nothing for an image (drop-path, FractalNet, 2017,
                arXiv:1605.07648), in training mode. The identity is never dropped; what is kept is scaled up.
                A tensor () is not looked at: numbers are drawn for 0, too, and nothing is dropped.
            generator: draws what is dropped, on the device of x.
        """
        x = self.stem(x)
        drops = self.training and (isinstance(drop, Tensor) or drop > 0)
        kept = self._draw_kept(drop, x, generator) if drops else None
        first = 0  # of the edges of a cell among all that may be dropped
        # The first cell reads the stem as both of its inputs, or its two last stages if it is large.
        before = last = x.relu()
        if self.second is not None:
            last = self.second(before).relu()
        auxiliary = None
        for number, cell in enumerate(self.cells):
            of_cell = None
            assert isinstance(cell, FinalCell)
            if kept is not None:
                of_cell = kept[first : first + sum(cell.dropped)]
                first += len(of_cell)
            x = cell(before, last, of_cell)
            before, last = last, x.relu()
            if self.auxiliary is not None and self.training and number == self.attached_at:
                auxiliary = self.auxiliary(last)
        logits = self.classifier(x.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)

    def compiled_parts(self) -> list[nn.Module]:
        """What torch.compile compiles: cells, of which most are alike."""
        return list(self.cells)

    def _draw_kept(
        self, drop: float | Tensor, x: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """For each edge that may be dropped, in order, its factor for each image (N, 1, 1, 1)."""
        edges = sum(sum(cell.dropped) for cell in self.cells if isinstance(cell, FinalCell))
        # One draw for all edges of all cells.
        shape = (edges, len(x), 1, 1, 1)
        kept = torch.rand(shape, generator=generator, device=x.device) >= drop
        return (kept.to(x.dtype) / (1 - drop)).unbind()
