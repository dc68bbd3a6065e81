"""The plain network of a NAS-Bench-201 cell: the one whose accuracies the tables hold.

Dong and Yang 2020, arXiv:2001.00326. Differs from the reference code: `none` builds and computes nothing
(there it multiplies by zero), with the same result.
"""

import torch
from torch import Tensor, nn

from oneshot.networks.residual import ResidualBlock
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Cell, Genotype
from oneshot.spaces.own_operations import Constructors, build_own_operation

KERNEL = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


class FinalNasBench201Network(nn.Module):
    """Stem, three stages of cells with a residual block of stride 2 between them, classifier.

    Args:
        genotype: one of space nasbench201.
        channels: of the first stage; each later one has twice as many.
        cells: in each stage.
        classes: outputs.
        inputs: channels of the image.
    """

    def __init__(
        self, genotype: Genotype, channels: int = 16, cells: int = 5, classes: int = 10, inputs: int = 3
    ):
        super().__init__()
        space = find_space(genotype.space)
        assert space.graph == "nasbench201", genotype.space
        cell = genotype.cells["cell"]
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        layers: list[nn.Module] = []
        for stage in range(3):
            width = channels * 2**stage
            if stage:
                layers.append(ResidualBlock(width // 2, width))
            layers += [FinalNasBench201Cell(cell, width, space.constructors) for _ in range(cells)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, classes) logits."""
        return self.head(self.body(self.stem(x_NCHW)))

    def compiled_parts(self) -> list[nn.Module]:
        """What torch.compile compiles: cells and the blocks between them."""
        return list(self.body)


class FinalNasBench201Cell(nn.Module):
    """One cell: every node sums its edges; the last node is the output."""

    def __init__(self, cell: Cell, channels: int, constructors: Constructors = ()):
        super().__init__()
        self.sources: list[list[int]] = []  # for each node, the states that its edges read
        self.output = cell.output[-1]
        self.edges = nn.ModuleList()
        for edges in cell.nodes:
            kept = [(name, source) for name, source in edges if name != "none"]
            self.sources.append([source for _, source in kept])
            operations = [build_nasbench201_operation(name, channels, constructors) for name, _ in kept]
            self.edges.append(nn.ModuleList(operations))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The output node, of the shape of x."""
        states = [x_NCHW]
        for sources, operations in zip(self.sources, self.edges, strict=True):
            node: Tensor | None = None
            for source, operation in zip(sources, operations, strict=True):  # type: ignore[call-overload]
                passed = operation(states[source])
                node = passed if node is None else node + passed
            # A node that only has edges `none` is 0.
            states.append(torch.zeros_like(x_NCHW) if node is None else node)
        return states[self.output]


def build_nasbench201_operation(name: str, channels: int, constructors: Constructors = ()) -> nn.Module:
    """The module of an operation other than `none`."""
    own = dict(constructors)
    if name in own:
        return build_own_operation(own[name], channels, 1)
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    kernel = KERNEL[name]
    convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(channels))
