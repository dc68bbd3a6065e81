"""The plain network of a NAS-Bench-201 cell (Dong and Yang 2020, arXiv:2001.00326): the one whose accuracies
the tables hold.

Differs from the reference code: `none` builds and computes nothing (there it multiplies by zero), with the
same result.
"""

import torch
from torch import Tensor, nn

from oneshot.spaces.genotype import Cell, Genotype

KERNEL = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


class NasBench201Network(nn.Module):
    """Stem, three stages of cells with a residual block of stride 2 between them, classifier.

    Args:
        genotype: one of space nasbench201.
        channels: of the first stage; each later one has twice as many.
        cells: in each stage.
        classes: outputs.
        inputs: of the image.
    """

    def __init__(
        self, genotype: Genotype, channels: int = 16, cells: int = 5, classes: int = 10, inputs: int = 3
    ):
        super().__init__()
        assert genotype.space == "nasbench201", genotype.space
        cell = genotype.cells["cell"]
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        layers: list[nn.Module] = []
        for stage in range(3):
            width = channels * 2**stage
            if stage:
                layers.append(ResidualBlock(width // 2, width))
            layers += [CellModule(cell, width) for _ in range(cells)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, classes) logits."""
        return self.head(self.body(self.stem(x_NCHW)))


class CellModule(nn.Module):
    """One cell: every node sums its edges; the last node is the output."""

    def __init__(self, cell: Cell, channels: int):
        super().__init__()
        self.nodes = cell.nodes
        self.output = cell.output[-1]
        self.edges = nn.ModuleList(
            nn.ModuleList(operation(name, channels) for name, _ in edges if name != "none")
            for edges in cell.nodes
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The output node, of the shape of x."""
        states = [x_NCHW]
        for edges, modules in zip(self.nodes, self.edges, strict=True):
            sources = [source for name, source in edges if name != "none"]
            terms = [module(states[source]) for source, module in zip(sources, modules, strict=True)]  # type: ignore[call-overload]
            states.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x_NCHW))
        return states[self.output]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside an average pool and a 1x1 convolution. ReLU comes
    before each convolution."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.branch = nn.Sequential(relu_conv_bn(inp, out, 3, 2), relu_conv_bn(out, out, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inp, out, 1, bias=False))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Half the height and width."""
        return self.shortcut(x_NCHW) + self.branch(x_NCHW)


def relu_conv_bn(inp: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution, BatchNorm."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)
    )


def operation(name: str, channels: int) -> nn.Module:
    """The module of an operation other than `none`."""
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return relu_conv_bn(channels, channels, KERNEL[name])
