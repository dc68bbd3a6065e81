"""Search networks: functions of (images, edge weights). No architecture parameters live in them.

DARTS (2019, arXiv:1806.09055), the stem for large images that PC-DARTS searches ImageNet with (2020,
arXiv:1907.05737), and NAS-Bench-201 (2020, arXiv:2001.00326).
"""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import NetworkEdgeWeights, weights_of_cell
from oneshot.networks.parallel_edges import DEFAULT_EDGES, EdgeSettings
from oneshot.networks.residual import ResidualBlock
from oneshot.networks.search_cells import DartsCell, MixedNodes
from oneshot.spaces.cells import CellSpace

# The published searches on NAS-Bench-201 take the statistics of the batch always, and normalise no pools.
NASBENCH201_EDGES = EdgeSettings(track=False, pool_norm=False)


class SearchSize(NamedTuple):
    """The size of a search network: its channels and cells, the classes, the channels of an image."""

    channels: int
    cells: int
    classes: int
    inputs: int


StemName = Literal["cifar", "imagenet"]
# Images with sides of so many pixels and more get the stem of ImageNet. It halves the side three times: at 96
# pixels the cells work on maps of 12, 6 and 3 pixels, below that the last ones would see hardly any map.
LARGE = 96


def _conv_norm(inputs: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)]


def stem_for(size: int) -> StemName:
    """The stem that images of `size` pixels a side get unless another one is asked for."""
    return "imagenet" if size >= LARGE else "cifar"


class DartsNetwork(nn.Module):
    """DARTS's search network: stem, cells of which two halve the map, linear classifier.

    The cells at a third and at two thirds are the reduction cells.

    Args:
        space: `darts` or one with its graph.
        channels: of the first cells' states; doubled at each reduction.
        cells: how many.
        classes: K.
        inputs: channels of an image.
        settings: of the edges.
        last_norm: a BatchNorm and a ReLU before the classifier, as in PR-DARTS's code.
        stem: one convolution (cifar), or three of stride 2 (imagenet), of whose outputs the first cell reads
            the second and the third.
    """

    def __init__(
        self,
        space: CellSpace,
        channels: int = 16,
        cells: int = 8,
        classes: int = 10,
        inputs: int = 3,
        settings: EdgeSettings = DEFAULT_EDGES,
        last_norm: bool = False,
        stem: StemName = "cifar",
    ):
        super().__init__()
        self.space, self.settings, self.size = space, settings, SearchSize(channels, cells, classes, inputs)
        self.stem_name: StemName = stem
        width = 3 * channels
        self.second: nn.Sequential | None = None
        if stem == "imagenet":
            halved = _conv_norm(inputs, width // 2, stride=2)
            self.stem = nn.Sequential(*halved, nn.ReLU(), *_conv_norm(width // 2, width, stride=2))
            self.second = nn.Sequential(*_conv_norm(width, width, stride=2))
        else:
            self.stem = nn.Sequential(*_conv_norm(inputs, width))
        self.cells = nn.ModuleList()
        widths = (width, width)
        # The large stem's second output has half the side of its first, as after a reduction cell.
        after_reduction = stem == "imagenet"
        for number in range(cells):
            reduces = number in (cells // 3, 2 * cells // 3)
            kind = "reduce" if reduces else "normal"
            # Half the side and twice the channels: a cell's cost stays about the same.
            channels *= 2 if reduces else 1
            self.cells.append(DartsCell(space, kind, widths, channels, after_reduction, settings))
            # The next cell's older input is then twice as large as its newer one.
            after_reduction = reduces
            widths = (widths[1], space.nodes * channels)
        self.norm = nn.BatchNorm2d(widths[1]) if last_norm else None
        self.classifier = nn.Linear(widths[1], classes)

    def like(self, space: CellSpace, partial: int, cells: int) -> "DartsNetwork":
        """Another, untrained network of this kind, for a later stage of a search."""
        size, settings = self.size, self.settings._replace(partial=partial)
        last_norm = self.norm is not None
        return DartsNetwork(
            space, size.channels, cells, size.classes, size.inputs, settings, last_norm, self.stem_name
        )

    def numbers_of(self, kind: str) -> list[int]:
        """The numbers of the cells of a kind."""
        return [number for number, cell in enumerate(self.cells) if cell.kind == kind]

    def forward(self, x_NCHW: Tensor, edge_weights: NetworkEdgeWeights, create_graph: bool = False) -> Tensor:
        """Logits (N, K).

        Args:
            x_NCHW: images of any side; where an odd one is halved, it is rounded up.
            edge_weights: for the kinds `normal` and `reduce`.
            create_graph: the result will be differentiated twice, which the fast gradients are not made for.
        """
        state, before = self.stem(x_NCHW), None
        if self.second is not None:
            before = F.relu(state)
            state = self.second(before)
        for number, cell in enumerate(self.cells):
            last = F.relu(state)
            cell_weights = weights_of_cell(edge_weights, str(cell.kind), number)
            # The first cell reads a small stem as both of its inputs.
            state = cell(last if before is None else before, last, cell_weights, create_graph)
            before = last
        if self.norm is not None:
            state = F.relu(self.norm(state))
        return self.classifier(state.mean((2, 3)))

    def compiled_parts(self) -> list[nn.Module]:
        """What torch.compile compiles: cells, of which many are alike."""
        return list(self.cells)


class NasBench201Network(nn.Module):
    """NAS-Bench-201's search network: three stages of `cells` cells, residual blocks between them.

    Args:
        space: `nasbench201`.
        channels: C of the first stage; doubled after each.
        cells: N, in each stage.
        classes: K.
        inputs: channels of an image.
        settings: of the edges.
    """

    def __init__(
        self,
        space: CellSpace,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        inputs: int = 3,
        settings: EdgeSettings = NASBENCH201_EDGES,
    ):
        super().__init__()
        self.space, self.settings, self.size = space, settings, SearchSize(channels, cells, classes, inputs)
        self.stem = nn.Sequential(*_conv_norm(inputs, channels))
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            self.blocks.extend(MixedNodes(space, "cell", channels, settings) for _ in range(cells))
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def like(self, space: CellSpace, partial: int, cells: int) -> "NasBench201Network":
        """Another, untrained network of this kind, for a later stage of a search."""
        size, settings = self.size, self.settings._replace(partial=partial)
        return NasBench201Network(space, size.channels, cells, size.classes, size.inputs, settings)

    def numbers_of(self, kind: str) -> list[int]:
        """The numbers of the cells among the blocks; they are of one kind."""
        return [number for number, block in enumerate(self.blocks) if isinstance(block, MixedNodes)]

    def forward(self, x_NCHW: Tensor, edge_weights: NetworkEdgeWeights, create_graph: bool = False) -> Tensor:
        """Logits (N, K).

        Args:
            x_NCHW: images; H and W are multiples of 4.
            edge_weights: for the kind `cell`.
            create_graph: the result will be differentiated twice, which the fast gradients are not made for.
        """
        x = self.stem(x_NCHW)
        for number, block in enumerate(self.blocks):
            if isinstance(block, MixedNodes):
                x = block([x], weights_of_cell(edge_weights, "cell", number), create_graph)[-1]
            else:
                x = block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))

    def compiled_parts(self) -> list[nn.Module]:
        """What torch.compile compiles: cells and the blocks between them."""
        return list(self.blocks)


CellsNetwork = DartsNetwork | NasBench201Network


def cells_network(network: nn.Module) -> CellsNetwork:
    """The search network of a space of cells of images; callers have refused all other spaces."""
    assert isinstance(network, CellsNetwork)
    return network
