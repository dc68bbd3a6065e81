"""Multiply-accumulates and parameters of an architecture in closed form; of one, or of a million encoded ones at once.

Convolutions and linear layers count, as in the published tables; biases, BatchNorm and activations cost no MACs. The cost
of a block depends on a handful of choices only, so a million architectures are table look-ups, one table for each block.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.space import Arch, Codes, Head, Space, Stage, Stem, encode


class Cost(NamedTuple):
    """macs: multiply-accumulates of one image. params: trainable scalars, BatchNorm's included."""

    macs: NDArray[np.int64]
    params: NDArray[np.int64]


class Table(NamedTuple):
    """Cost of one group of layers by the choices it reads: `columns` of the codes, and an array (*choices, 2)."""

    columns: tuple[int, ...]
    cost: NDArray[np.int64]


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, but never below 90% of it (MobileNetV2, arXiv:1801.04381, code)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def hidden_width(width: int, expand: float) -> int:
    """Channels between the two 1x1 convolutions of a block; `width` is what its stage says `expand` multiplies."""
    return make_divisible(round(width * expand)) if expand != 1 else width


def squeeze_width(hidden: int) -> int:
    """Channels inside squeeze-and-excitation."""
    return make_divisible(hidden // 4)


def halve(size: int, stride: int) -> int:
    """Side of the map after a convolution of this stride with 'same' padding."""
    return -(-size // stride)


def cost_of(space: Space, arch: Arch, classes: int = 1000, channels: int = 3) -> tuple[int, int]:
    """(MACs, parameters) of one architecture for `classes` classes and `channels` input channels."""
    cost = costs_of(space, encode(space, arch)[None], classes, channels)
    return int(cost.macs[0]), int(cost.params[0])


def costs_of(space: Space, codes_NF: Codes, classes: int = 1000, channels: int = 3) -> Cost:
    """Costs of every row. A million rows take about half a second when kernels are chosen per stage, 2 s per block."""
    choice_FN = np.ascontiguousarray(np.maximum(codes_NF, 1).T) - 1
    macs, params = np.zeros((2, len(codes_NF)), np.int64)
    for columns, cost in _cached_tables(space, classes, channels):
        place = np.zeros(len(codes_NF), np.int32)
        for column, choices in zip(columns, cost.shape, strict=False):
            if choices > 1:
                place *= choices
                place += choice_FN[column]
        macs += cost[..., 0].ravel()[place]
        params += cost[..., 1].ravel()[place]
    return Cost(macs, params)


@lru_cache(maxsize=8)
def _cached_tables(space: Space, classes: int, channels: int) -> tuple[Table, ...]:
    return tuple(tables(space, classes, channels))


def tables(space: Space, classes: int, channels: int) -> Iterator[Table]:
    """Tables for the stem, the blocks and the head; the cost of an architecture is the sum of its entries."""
    at, stem = space.column_index, space.stem
    deep = stem.deep
    middles, residuals = (deep.middle, deep.residual) if deep else ((0,), (0,))
    stems = [[[[stem_cost(stem, r, channels, w, m, n) for n in residuals] for m in middles] for w in stem.width] for r in space.resolution]
    choices = (at["resolution", 0], at["width", 0], *((at["stem", 0], at["stem", 1]) if deep else ()))
    yield Table(choices, np.array(stems, np.int64))
    sizes = [halve(halve(r, stem.stride), 2 if deep else 1) for r in space.resolution]
    before = space.stem.width
    for i, stage in enumerate(space.stages):
        after = [halve(r, stage.stride) for r in sizes]
        first = _grid(space, stage, sizes, before, stage.stride, space.changes_width(i, 0))
        later = _grid(space, stage, after, stage.width, 1, False)
        shape = (at["resolution", 0], at["width", i], at["width", i + 1])
        if space.granularity == "stage":
            same = np.moveaxis(np.diagonal(later, axis1=1, axis2=2), -1, 1)[:, None]  # a later block's input is its output
            total = np.stack([first + (d - 1) * same for d in stage.depth], axis=-2)
            yield Table((*shape, at["kernel", i], at["expand", i], at["depth", i]), total)
        else:
            for block in range(stage.depth[-1]):
                slot, grid = space.slot(i, block), first if block == 0 else later
                source = i if block == 0 else i + 1
                total = np.stack([grid if d > block else np.zeros_like(grid) for d in stage.depth], axis=-2)
                yield Table((shape[0], at["width", source], shape[2], at["kernel", slot], at["expand", slot], at["depth", i]), total)
        sizes, before = after, stage.width
    last = len(space.stages)
    if space.head is None:
        yield Table((at["width", last],), np.array([(n * classes, n * classes + classes) for n in before], np.int64))
    else:
        head = [[[head_cost(space.head, r, n, w, classes) for w in space.head.width] for n in before] for r in sizes]
        yield Table((at["resolution", 0], at["width", last], at["width", last + 1]), np.array(head, np.int64))


def _grid(space: Space, stage: Stage, sizes: list[int], inputs: tuple[int, ...], stride: int, changes: bool) -> NDArray[np.int64]:
    """Costs of one block: (resolution, input width, width, kernel, expand, 2)."""
    cost = bottleneck_cost if stage.block == "bottleneck" else partial(block_cost, space.shortcut)
    return np.array(
        [
            [
                [[[cost(stage, r, n, w, k, e, stride, changes) for e in stage.expand] for k in stage.kernel] for w in stage.width]
                for n in inputs
            ]
            for r in sizes
        ],
        np.int64,
    )


def stem_cost(stem: Stem, resolution: int, channels: int, width: int, middle: int, residual: int) -> tuple[int, int]:
    """(MACs, parameters) of the stem on an image of `channels` channels. Without a deep stem, `middle` and `residual` count for nothing."""
    path = [channels, *[middle] * (1 + residual), width] if stem.deep else [channels, width]
    weights = sum(9 * a * b for a, b in pairwise(path))
    return halve(resolution, stem.stride) ** 2 * weights, weights + 2 * sum(path[1:])


def block_cost(
    shortcut: str, stage: Stage, size: int, inp: int, out: int, kernel: int, expand: float, stride: int, changes: bool
) -> tuple[int, int]:
    """(MACs, parameters) of one inverted bottleneck on a `size` x `size` map of `inp` channels. changes: `Space.changes_width`."""
    hidden, after = hidden_width(inp, expand), halve(size, stride)
    weights = [(after**2, kernel**2 * hidden), (after**2, hidden * out)]
    extra = 2 * hidden + 2 * out
    if stage.expand != (1,):
        weights.append((size**2, inp * hidden))
        extra += 2 * hidden
    if stage.se:
        squeeze = squeeze_width(hidden)
        weights.append((1, 2 * hidden * squeeze))
        extra += hidden + squeeze
    if shortcut == "projected" and changes and inp != out:
        weights.append((after**2, inp * out))
    return sum(area * w for area, w in weights), sum(w for _, w in weights) + extra


def bottleneck_cost(stage: Stage, size: int, inp: int, out: int, kernel: int, expand: float, stride: int, changes: bool) -> tuple[int, int]:
    """(MACs, parameters) of one ResNet-D bottleneck on a `size` x `size` map of `inp` channels."""
    hidden, after = hidden_width(out, expand), halve(size, stride)
    shortcut = inp * out if changes else 0
    later = kernel**2 * hidden**2 + hidden * out + shortcut
    norms = 4 * hidden + 2 * out + (2 * out if changes else 0)
    return size**2 * inp * hidden + after**2 * later, inp * hidden + later + norms


def head_cost(head: Head, size: int, inp: int, width: int, classes: int) -> tuple[int, int]:
    """(MACs, parameters) of the head and the classifier on a `size` x `size` map of `inp` channels."""
    linear = width * classes
    if head.expand is None:
        return size**2 * inp * width + linear, inp * width + 2 * width + linear + classes
    wide = head.expand * inp
    params = inp * wide + 2 * wide + wide * width + (width if head.bias else 0) + linear + classes
    return size**2 * inp * wide + wide * width + linear, params
