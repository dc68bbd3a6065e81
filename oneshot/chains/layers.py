"""The layers of a chain as specs, which know their costs, their names in latency tables and their modules."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.blocks.head import HeadSpec
from engine.blocks.kind import BlockSpec
from engine.blocks.layers import LayerSpec
from engine.blocks.sizes import halve, hidden_width
from engine.blocks.stem import StemSpec
from oneshot.chains.operation import parse_operation
from oneshot.chains.space import ChainLayer, ChainSpace


class ImageShape(NamedTuple):
    """What a chain is built for.

    Args:
        size: side of the images, in pixels.
        channels: of an image.
        classes: outputs of the classifier.
    """

    size: int
    channels: int = 3
    classes: int = 1000


class ChainCosts(NamedTuple):
    """What the layers of a chain cost.

    Args:
        layers_EO: of every operation in each searched layer; 0 for a skip and where an operation is not
            offered.
        constant: of everything else: stem, layers without a choice, head and classifier.
    """

    layers_EO: NDArray[np.float64]
    constant: float

    def total(self, space: ChainSpace, operations: Sequence[str]) -> float:
        """The cost of a chain; `operations`: one for each layer of the space."""
        cost = self.constant
        for edge, number in enumerate(space.searched):
            cost += float(self.layers_EO[edge, space.operations.index(operations[number])])
        return cost


def chain_stem(space: ChainSpace, image: ImageShape) -> StemSpec:
    """The spec of the stem."""
    return StemSpec(
        size=image.size,
        channels=image.channels,
        width=space.stem.width,
        stride=space.stem.stride,
        act=space.stem.act or space.act,
        deep=False,
        middle=0,
        plain=0,
        residual=0,
        kernel=3,
        pool=False,
    )


def chain_head(space: ChainSpace, image: ImageShape) -> HeadSpec:
    """The spec of head and classifier."""
    inp, wide = space.layers[-1].out, space.head.width if space.head else 0
    return HeadSpec(chain_sizes(space, image)[-1], inp, wide, 0, False, space.act, image.classes)


def chain_sizes(space: ChainSpace, image: ImageShape) -> list[int]:
    """Sides of the input map of every layer, and of the head's."""
    sizes = [halve(image.size, space.stem.stride)]
    for layer in space.layers:
        sizes.append(halve(sizes[-1], layer.stride))
    return sizes


def block_spec(space: ChainSpace, layer: ChainLayer, name: str, size: int) -> BlockSpec | None:
    """The spec of an operation in a layer.

    Args:
        space: of the layer.
        layer: where the operation stands.
        name: of the operation.
        size: side of the layer's input map.

    Returns:
        The spec; None for a skip, which computes nothing.
    """
    operation = parse_operation(name)
    if operation is None:
        return None
    return BlockSpec(
        block="inverted",
        size=size,
        inp=layer.inp,
        hidden=hidden_width(layer.inp, operation.expand),
        out=layer.out,
        kernel=operation.kernel,
        stride=layer.stride,
        expands=space.expand_always or operation.expand != 1,
        se=None,
        act=space.act,
        residual=layer.stride == 1 and layer.inp == layer.out,
        projects=False,
        groups=operation.groups,
    )


def chain_specs(space: ChainSpace, operations: Sequence[str], image: ImageShape) -> list[LayerSpec]:
    """The layers of one chain, in the order in which they run; skipped ones are not there.

    Args:
        space: of the chain.
        operations: one for each layer of the space.
        image: what the chain is built for.
    """
    specs: list[LayerSpec] = [chain_stem(space, image)]
    for layer, name, size in zip(space.layers, operations, chain_sizes(space, image), strict=False):
        block = block_spec(space, layer, name, size)
        if block is not None:
            specs.append(block)
    return [*specs, chain_head(space, image)]


def distinct_specs(space: ChainSpace, image: ImageShape) -> list[LayerSpec]:
    """Every layer that some chain of the space contains, once."""
    found: dict[LayerSpec, None] = {chain_stem(space, image): None}
    for layer, size in zip(space.layers, chain_sizes(space, image), strict=False):
        for name in layer.operations:
            block = block_spec(space, layer, name, size)
            if block is not None:
                found[block] = None
    return [*found, chain_head(space, image)]


def chain_costs(space: ChainSpace, image: ImageShape, cost: Callable[[LayerSpec], float]) -> ChainCosts:
    """What each choice adds to the cost of a chain, which is a sum over its layers.

    Args:
        space: whose layers are costed.
        image: what the chain is built for.
        cost: of one layer.
    """
    constant = cost(chain_stem(space, image)) + cost(chain_head(space, image))
    sizes = chain_sizes(space, image)
    layers_EO = np.zeros((len(space.searched), len(space.operations)))
    for number, layer in enumerate(space.layers):
        for name in layer.operations:
            block = block_spec(space, layer, name, sizes[number])
            if block is None:
                continue
            if number in space.searched:
                layers_EO[space.searched.index(number), space.operations.index(name)] = cost(block)
            else:
                constant += cost(block)
    return ChainCosts(layers_EO, constant)
