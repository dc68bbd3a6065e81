"""The pieces that architectures are made of: a stem, blocks and a head, each described by what it computes,
wherever it stands.

MACs, parameters, memory, file size and latency of an architecture are sums (memory: a maximum) over its
pieces. A piece depends on a handful of choices only, so a million encoded architectures are table look-ups,
one table for each block.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.space.space import Codes, Space, Stage, decode

Numbers = NDArray[Any]  # int64 of counts, float64 of milliseconds


class StemSpec(NamedTuple):
    """The stem on a `size` x `size` image. `middle` and `residual` are 0 unless it is deep."""

    size: int
    channels: int
    width: int
    stride: int
    act: str
    deep: bool
    middle: int
    residual: int


class BlockSpec(NamedTuple):
    """One block on a `size` x `size` map of `inp` channels.

    expands: there is a 1x1 convolution before the k x k one. residual: its input is added to its output,
        through a 1x1 convolution
    if `projects`, after an average pool if it has a stride. A bottleneck's shortcut convolution has
    BatchNorm, an inverted one's has not.
    """

    block: str
    size: int
    inp: int
    hidden: int
    out: int
    kernel: int
    stride: int
    expands: bool
    se: bool
    act: str
    residual: bool
    projects: bool


class HeadSpec(NamedTuple):
    """What follows the last block on a `size` x `size` map of `inp` channels: [1x1 to `wide`,] pool, [linear
    to `width`,] classifier.

    wide is 0 without the first, width is 0 without the second of these layers; bias is of the second.
    """

    size: int
    inp: int
    wide: int
    width: int
    bias: bool
    act: str
    classes: int


LayerSpec = StemSpec | BlockSpec | HeadSpec
Price = Callable[[LayerSpec], Sequence[float]]


class Table(NamedTuple):
    """Prices of one group of layers by the choices it reads: `columns` of the codes, and an array (*choices,
    prices)."""

    columns: tuple[int, ...]
    price: Numbers


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, but never below 90% of it (MobileNetV2, arXiv:1801.04381,
    code)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def hidden_width(width: int, expand: float) -> int:
    """Channels between the two 1x1 convolutions of a block; `width` is what its stage says `expand`
    multiplies."""
    return make_divisible(round(width * expand)) if expand != 1 else width


def squeeze_width(hidden: int) -> int:
    """Channels inside squeeze-and-excitation."""
    return make_divisible(hidden // 4)


def halve(size: int, stride: int) -> int:
    """Side of the map after a convolution of this stride with 'same' padding."""
    return -(-size // stride)


def total(tables: Sequence[Table], codes_NF: Codes, join: np.ufunc = np.add) -> Numbers:
    """(prices, N) of every row of codes: the sum over its pieces, or what `join` (np.maximum) makes of
    them."""
    choice_FN = np.ascontiguousarray(np.maximum(codes_NF, 1).T) - 1
    totals = np.zeros((tables[0].price.shape[-1], len(codes_NF)), tables[0].price.dtype)
    for columns, price in tables:
        place = np.zeros(len(codes_NF), np.int32)
        for column, choices in zip(columns, price.shape, strict=False):
            if choices > 1:
                place *= choices
                place += choice_FN[column]
        for k, row in enumerate(totals):
            join(row, price[..., k].ravel()[place], out=row)
    return totals


def tables(
    space: Space, classes: int, channels: int, price: Price, join: np.ufunc = np.add, dtype: type = np.int64
) -> Iterator[Table]:
    """Tables for the stem, the blocks and the head. join: how the prices of a stage's blocks become one,
    np.add or np.maximum."""
    at, stem = space.column_index, space.stem
    middles, residuals = (stem.deep.middle, stem.deep.residual) if stem.deep else ((0,), (0,))
    stem_spec = partial(StemSpec, channels=channels, stride=stem.stride, act=stem.act, deep=bool(stem.deep))
    stems = [
        [
            [[price(stem_spec(r, width=w, middle=m, residual=n)) for n in residuals] for m in middles]
            for w in stem.width
        ]
        for r in space.resolution
    ]
    choices = (at["resolution", 0], at["width", 0], *((at["stem", 0], at["stem", 1]) if stem.deep else ()))
    yield Table(choices, np.array(stems, dtype))
    sizes, before = map_sizes(space), space.stem.width
    for i, stage in enumerate(space.stages):
        grid = partial(_grid, space, stage, price=price, dtype=dtype)
        first = grid(sizes[i], before, stage.stride, space.changes_width(i, 0))
        later = grid(sizes[i + 1], stage.width, 1, False)
        shape = (at["resolution", 0], at["width", i], at["width", i + 1])
        if space.granularity == "stage":
            same = np.moveaxis(np.diagonal(later, axis1=1, axis2=2), -1, 1)[
                :, None
            ]  # a later block's input is its output
            stages = [
                join(first, (d - 1) * same if join is np.add else same) if d > 1 else first
                for d in stage.depth
            ]
            yield Table((*shape, at["kernel", i], at["expand", i], at["depth", i]), np.stack(stages, axis=-2))
        else:
            for block in range(stage.depth[-1]):
                slot, prices = space.slot(i, block), first if block == 0 else later
                source = i if block == 0 else i + 1
                by_depth = np.stack(
                    [prices if d > block else np.zeros_like(prices) for d in stage.depth], axis=-2
                )
                yield Table(
                    (
                        shape[0],
                        at["width", source],
                        shape[2],
                        at["kernel", slot],
                        at["expand", slot],
                        at["depth", i],
                    ),
                    by_depth,
                )
        before = stage.width
    last = len(space.stages)
    widths = space.head.width if space.head else (0,)
    heads = [[[price(head_spec(space, r, n, w, classes)) for w in widths] for n in before] for r in sizes[-1]]
    yield Table(
        (at["resolution", 0], at["width", last], *([at["width", last + 1]] if space.head else [])),
        np.array(heads, dtype),
    )


def layer_specs(space: Space, row: Codes, classes: int, channels: int) -> list[LayerSpec]:
    """The pieces of one encoded architecture, in the order in which they run."""
    arch = decode(space, row)
    stem, at = space.stem, space.resolution.index(arch.resolution)
    middle, residual = arch.stem if stem.deep else (0, 0)
    width = arch.width[0]
    pieces: list[LayerSpec] = [
        StemSpec(arch.resolution, channels, width, stem.stride, stem.act, bool(stem.deep), middle, residual)
    ]
    sizes = [size[at] for size in map_sizes(space)]
    for i, stage in enumerate(space.stages):
        for j in range(arch.depth[i]):
            slot, stride, out = space.slot(i, j), stage.stride if j == 0 else 1, arch.width[i + 1]
            size = sizes[i] if j == 0 else sizes[i + 1]
            change = space.changes_width(i, j)
            pieces.append(
                block_spec(
                    space, stage, size, width, out, arch.kernel[slot], arch.expand[slot], stride, change
                )
            )
            width = out
    return [*pieces, head_spec(space, sizes[-1], width, arch.width[-1], classes)]


def map_sizes(space: Space) -> list[list[int]]:
    """For each stage, and after the last, the side of its input at every resolution."""
    sizes = [[halve(halve(r, space.stem.stride), 2 if space.stem.deep else 1) for r in space.resolution]]
    for stage in space.stages:
        sizes.append([halve(r, stage.stride) for r in sizes[-1]])
    return sizes


def _grid(
    space: Space,
    stage: Stage,
    sizes: list[int],
    inputs: tuple[int, ...],
    stride: int,
    changes: bool,
    price: Price,
    dtype: type,
) -> Numbers:
    """Prices of one block: (resolution, input width, width, kernel, expand, prices)."""
    piece = partial(block_spec, space, stage)
    return np.array(
        [
            [
                [
                    [
                        [price(piece(r, n, w, k, e, stride, changes)) for e in stage.expand]
                        for k in stage.kernel
                    ]
                    for w in stage.width
                ]
                for n in inputs
            ]
            for r in sizes
        ],
        dtype,
    )


def block_spec(
    space: Space,
    stage: Stage,
    size: int,
    inp: int,
    out: int,
    kernel: int,
    expand: float,
    stride: int,
    changes: bool,
) -> BlockSpec:
    """A block of `stage`. changes: `Space.changes_width`."""
    if stage.block == "bottleneck":
        hidden, expands, residual, projects = hidden_width(out, expand), True, True, changes
    else:
        hidden, expands, projected = (
            hidden_width(inp, expand),
            stage.expand != (1,),
            space.shortcut == "projected",
        )
        residual, projects = projected or (stride == 1 and inp == out), projected and changes and inp != out
    return BlockSpec(
        stage.block, size, inp, hidden, out, kernel, stride, expands, stage.se, stage.act, residual, projects
    )


def head_spec(space: Space, size: int, inp: int, width: int, classes: int) -> HeadSpec:
    """The head, and the classifier, on maps of the last stage."""
    head = space.head
    if head is None:
        return HeadSpec(size, inp, 0, 0, False, "", classes)
    if head.expand is None:
        return HeadSpec(size, inp, width, 0, False, head.act, classes)
    return HeadSpec(size, inp, head.expand * inp, width, head.bias, head.act, classes)
