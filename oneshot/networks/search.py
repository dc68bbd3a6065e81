"""Search networks: functions of (images, edge weights). No architecture parameters live in them.

DARTS (2019, arXiv:1806.09055) and NAS-Bench-201 (2020, arXiv:2001.00326).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.networks.parallel_edges import DEFAULT_EDGES, EdgeSettings
from oneshot.networks.residual import ResidualBlock
from oneshot.networks.search_cells import DartsCell, MixedNodes
from oneshot.spaces.cells import CellSpace

# The published searches on NAS-Bench-201 take the statistics of the batch always, and normalise no pools.
NASBENCH201_EDGES = EdgeSettings(track=False, pool_norm=False)


def _stem(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


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
    ):
        super().__init__()
        self.stem = _stem(inputs, 3 * channels)
        self.cells = nn.ModuleList()
        widths = (3 * channels, 3 * channels)
        after_reduction = False
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

    def forward(self, x_NCHW: Tensor, edge_weights: NetworkEdgeWeights, create_graph: bool = False) -> Tensor:
        """Logits (N, K).

        Args:
            x_NCHW: images; H and W are multiples of 4.
            edge_weights: for the kinds `normal` and `reduce`.
            create_graph: the result will be differentiated twice, which the fast gradients are not made for.
        """
        state, before = self.stem(x_NCHW), None
        for cell in self.cells:
            last = F.relu(state)
            # The first cell reads the stem as both of its inputs.
            state = cell(last if before is None else before, last, edge_weights[str(cell.kind)], create_graph)
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
        self.stem = _stem(inputs, channels)
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            self.blocks.extend(MixedNodes(space, "cell", channels, settings) for _ in range(cells))
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x_NCHW: Tensor, edge_weights: NetworkEdgeWeights, create_graph: bool = False) -> Tensor:
        """Logits (N, K).

        Args:
            x_NCHW: images; H and W are multiples of 4.
            edge_weights: for the kind `cell`.
            create_graph: the result will be differentiated twice, which the fast gradients are not made for.
        """
        x = self.stem(x_NCHW)
        for block in self.blocks:
            if isinstance(block, MixedNodes):
                x = block([x], edge_weights["cell"], create_graph)[-1]
            else:
                x = block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))

    def compiled_parts(self) -> list[nn.Module]:
        """What torch.compile compiles: cells and the blocks between them."""
        return list(self.blocks)
