"""What each operation on each edge of a cell adds to the final network, in closed form: MACs or parameters.

The cost of a network is a sum over the edges of its cells and a constant. So the expected cost of mixed
operations is the same sum weighted (ProxylessNAS, FBNet), and the costs of all cells of NAS-Bench-201 are one
look-up. Convolutions and linear layers count as MACs; biases, BatchNorm, pools and sums cost none. The FLOPs
published with NAS-Bench-201 are these plus the biases of the classifier.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Genotype
from oneshot.spaces.own_operations import own_operation_cost

CostKind = Literal["macs", "params"]
CostArray = NDArray[np.int64]


class NetworkShape(NamedTuple):
    """The final network around its cells.

    Args:
        channels: of the first cell.
        cells: in the network (DARTS), or in each of the three stages (NAS-Bench-201).
        classes: outputs of the classifier.
        size: height and width of the image; a multiple of 4, and of 32 for the stem of ImageNet.
        stem: cifar, or imagenet (DARTS only), which has three convolutions of stride 2.
        inputs: of the image.
    """

    channels: int
    cells: int
    classes: int = 10
    size: int = 32
    stem: Literal["cifar", "imagenet"] = "cifar"
    inputs: int = 3


NASBENCH201 = NetworkShape(16, 5)
DARTS_CIFAR, DARTS_IMAGENET = NetworkShape(36, 20), NetworkShape(48, 14, 1000, 224, "imagenet")


class EdgeCosts(NamedTuple):
    """The cost of a network, edge by edge.

    Args:
        space: what the edges and operations mean.
        edges: (E, O) for each kind of cell, summed over all cells of that kind.
        constant: the cost of everything else.
    """

    space: CellSpace
    edges: dict[str, CostArray]
    constant: int

    def total(self, genotype: Genotype) -> int:
        """The cost of the final network of a genotype.

        DARTS cells must return all their nodes, as every searched one does.
        """
        cost = self.constant
        for kind, cell in genotype.cells.items():
            for target, edges in enumerate(cell.nodes, start=self.space.inputs):
                for name, source in edges:
                    edge = self.space.edges.index((source, target))
                    cost += int(self.edges[kind][edge, self.space.operations.index(name)])
        return cost


class Layers(NamedTuple):
    """Convolutions or a linear layer.

    Args:
        weights: the number of their weights.
        others: numbers that cost no MACs, such as those of BatchNorm.
        size: height and width of the output.
    """

    weights: int
    others: int
    size: int

    def cost(self, kind: CostKind) -> int:
        """MACs or parameters."""
        if kind == "macs":
            return self.weights * self.size**2
        return self.weights + self.others


class PlacedCell(NamedTuple):
    """A cell at its place in the network.

    Args:
        kind: of cell.
        channels: of its nodes.
        size: height and width of the maps that it makes.
        stride: of the edges that read its inputs.
    """

    kind: str
    channels: int
    size: int
    stride: int


def conv_layers(inp: int, out: int, kernel: int, size: int) -> Layers:
    """A convolution and its BatchNorm."""
    return Layers(inp * out * kernel**2, 2 * out, size)


def operation_layers(name: str, channels: int, size: int, stride: int) -> Layers:
    """The layers of an operation of any image space.

    Args:
        size: of its output.
        stride: of its edge.
    """
    kernel = int(name[-1]) if name[-1].isdecimal() else 1
    # Separable: a convolution of each channel alone, then a 1x1 one across channels.
    depthwise, pointwise = kernel**2 * channels, channels**2
    if name.startswith("sep_conv"):
        return Layers(2 * (depthwise + pointwise), 4 * channels, size)
    if name.startswith("dil_conv"):
        return Layers(depthwise + pointwise, 2 * channels, size)
    if name.startswith("nor_conv"):
        return conv_layers(channels, channels, kernel, size)
    # A factorized reduction: two 1x1 convolutions with half of the channels each.
    if name == "skip_connect" and stride == 2:
        return conv_layers(channels, channels, 1, size)
    return Layers(0, 0, size)


def edge_costs(space: CellSpace, kind: CostKind, shape: NetworkShape) -> EdgeCosts:
    """The costs of every edge and operation of a space in a network of this shape.

    Raises:
        UserError: the space is not one of images, or the size does not fit.
    """
    if space.cells not in (("cell",), ("normal", "reduce")):
        raise UserError(
            "Costs are known for the spaces of images, darts, darts_s1 to darts_s4 and nasbench201, not for "
            f"'{space.name}'."
        )
    # Every halving must be exact: two reductions, and three more in the large stem.
    multiple = 32 if shape.stem == "imagenet" else 4
    if shape.size % multiple:
        raise UserError(
            f"Costs are known for image sizes that are multiples of {multiple}, not for {shape.size}."
        )
    network = _nasbench201(shape) if space.cells == ("cell",) else _darts(space, shape)
    edges = {cell: np.zeros((len(space.edges), len(space.operations)), np.int64) for cell in space.cells}
    constant = 0
    for part in network:
        # Layers outside of cells are the constant.
        if isinstance(part, Layers):
            constant += part.cost(kind)
        else:
            edges[part.kind] += _cell_costs(space, kind, part)
    return EdgeCosts(space, edges, constant)


def _cell_costs(space: CellSpace, kind: CostKind, cell: PlacedCell) -> CostArray:
    """(E, O) costs of one cell."""
    cost_EO, own = np.zeros((len(space.edges), len(space.operations)), np.int64), dict(space.constructors)
    for edge, (source, _) in enumerate(space.edges):
        stride = cell.stride if source < space.inputs else 1
        for column, name in enumerate(space.operations):
            if name in own:
                macs, params = own_operation_cost(own[name], cell.channels, cell.size, stride)
                cost_EO[edge, column] = macs if kind == "macs" else params
                continue
            layers = operation_layers(name, cell.channels, cell.size, stride)
            cost_EO[edge, column] = layers.cost(kind)
    return cost_EO


def _nasbench201(shape: NetworkShape) -> Iterator[Layers | PlacedCell]:
    """The network from input to output."""
    channels, size = shape.channels, shape.size
    yield conv_layers(shape.inputs, channels, 3, size)
    # Between stages a residual block: two 3x3 convolutions and a shortcut.
    for stage in range(3):
        if stage:
            channels, size = 2 * channels, size // 2
            yield conv_layers(channels // 2, channels, 3, size)
            yield conv_layers(channels, channels, 3, size)
            yield Layers(channels // 2 * channels, 0, size)  # the shortcut has no BatchNorm
        # Stride 1: NAS-Bench-201 halves the map between its stages.
        yield from [PlacedCell("cell", channels, size, 1)] * shape.cells
    yield Layers(channels * shape.classes, 2 * channels + shape.classes, 1)


def _darts(space: CellSpace, shape: NetworkShape) -> Iterator[Layers | PlacedCell]:
    """The network from input to output."""
    channels, size = shape.channels, shape.size
    if shape.stem == "cifar":
        before = last = 3 * channels
        yield conv_layers(shape.inputs, last, 3, size)
    else:
        before = last = channels
        yield conv_layers(shape.inputs, channels // 2, 3, size // 2)
        yield conv_layers(channels // 2, channels, 3, size // 4)
        yield conv_layers(channels, channels, 3, size // 8)
        size //= 8
    for index in range(shape.cells):
        reduces = index in (shape.cells // 3, 2 * shape.cells // 3)
        if reduces:
            channels *= 2
        # Both inputs become as wide as the cell, and as large as the newer one.
        yield conv_layers(before, channels, 1, size)
        yield conv_layers(last, channels, 1, size)
        if reduces:
            size //= 2
        yield PlacedCell("reduce" if reduces else "normal", channels, size, 2 if reduces else 1)
        # The cell's nodes are concatenated.
        before, last = last, space.nodes * channels
    yield Layers(last * shape.classes, shape.classes, 1)


def published_shape(space: CellSpace) -> NetworkShape:
    """The final network that the published evaluation builds on CIFAR-10."""
    return NASBENCH201 if space.graph == "nasbench201" else DARTS_CIFAR
