"""An architecture as a list of layers, and sums over layers for a million architectures at once.

A layer spec describes a stem, a block or a head by what it computes, wherever it stands. MACs, parameters,
memory, file size and latency of an architecture are sums (memory: a maximum) over its layer specs. A layer
depends on a handful of choices only. So its costs for all combinations of these choices fit in a table, and
the cost of encoded architectures is read from such tables, one for each group of layers that depends on the
same choices.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.blocks.head import HeadSpec
from engine.blocks.kind import BlockChoice, BlockSpec
from engine.blocks.layers import LayerSpec
from engine.blocks.sizes import halve, head_width
from engine.blocks.stem import StemSpec
from engine.blocks.table import block_kind
from ofa.space.arch import Arch, active_blocks
from ofa.space.codes import Codes
from ofa.space.parts import Head
from ofa.space.space import Space

CostFn = Callable[[LayerSpec], Sequence[float]]
Numbers = NDArray[Any]  # int64 of counts, float64 of milliseconds


class CostTable(NamedTuple):
    """Costs of one group of layers for every combination of the choices that they depend on.

    columns: the columns of the codes that hold these choices. costs: (*choices of those columns, costs); the
    last axis has one entry for each kind of cost, such as MACs and parameters.
    """

    columns: tuple[int, ...]
    costs: Numbers


def layer_specs(space: Space, arch: Arch, classes: int, channels: int) -> list[LayerSpec]:
    """The layers of one architecture, in the order in which they run: stem, blocks, head.

    Args:
        space: of the architecture.
        arch: the architecture.
        classes: outputs of the classifier.
        channels: input channels.
    """
    stem, at = space.stem, space.resolution.index(arch.resolution)
    # The numbers of a deep stem; 0 stands for "none" in the specs of all others.
    middle, residual = arch.stem if stem.deep else (0, 0)
    width = arch.width[0]
    layers: list[LayerSpec] = [stem_spec(space, arch.resolution, channels, width, middle, residual)]
    sizes = [size_R[at] for size_R in map_sizes(space)]
    for stage, block, choice in active_blocks(space, arch):
        # Only the first block of a stage has a stride: the others see the map that it leaves.
        size = sizes[stage] if block == 0 else sizes[stage + 1]
        position = space.block_position(stage, block, width)
        kind = block_kind(space.stages[stage].block)
        layers.append(kind.spec(space.block_settings(stage), position, size, choice))
        width = choice.width
    return [*layers, head_spec(space.head, sizes[-1], width, arch.width[-1], classes)]


def stem_spec(
    space: Space, resolution: int, channels: int, width: int, middle: int, residual: int
) -> StemSpec:
    """The spec of a space's stem.

    Args:
        space: of the stem.
        resolution: side of the images.
        channels: of the images.
        width: output channels.
        middle, residual: `Arch.stem` of a deep stem; 0 in all others.
    """
    stem, deep = space.stem, space.stem.deep
    return StemSpec(
        size=resolution,
        channels=channels,
        width=width,
        stride=stem.stride,
        act=stem.act,
        deep=deep is not None,
        middle=middle,
        plain=deep.plain if deep else 0,
        residual=residual,
        kernel=stem.kernel,
        pool=stem.pool or deep is not None,
        same=space.padding == "same" and stem.stride > 1,
    )


def head_spec(head: Head | None, size: int, inp: int, width: int, classes: int) -> HeadSpec:
    """The spec of a space's head.

    Args:
        head: of the space; None: pool and classifier only.
        size: side of the last block's map.
        inp: channels of that map.
        width: features of the head; without a head it counts for nothing.
        classes: outputs of the classifier.
    """
    if head is None:
        return HeadSpec(size, inp, 0, 0, False, "", classes)
    if head.expand is None:
        return HeadSpec(size, inp, width, 0, False, head.act, classes)
    wide = head_width(inp, head.expand)
    return HeadSpec(size, inp, wide, width, head.bias, head.act, classes, head.norm)


def map_sizes(space: Space) -> list[list[int]]:
    """Sides of maps: for each stage that of its input, at last that of the head's, at every resolution."""
    sizes = [[halve(resolution, space.stem.total_stride) for resolution in space.resolution]]
    for stage in space.stages:
        sizes.append([halve(size, stage.stride) for size in sizes[-1]])
    return sizes


def total(tables: Sequence[CostTable], codes_NF: Codes, join: np.ufunc = np.add) -> Numbers:
    """(costs, N) of every row of codes.

    Args:
        tables: what `cost_tables` yields.
        codes_NF: encoded architectures.
        join: how the costs of layers become one: np.add, or np.maximum for memory.
    """
    # Transposed, so that every table reads its columns from consecutive memory. Code 0, an inactive block,
    # reads choice 0: at a depth without that block all its costs in the table are 0.
    choice_FN = np.ascontiguousarray(np.maximum(codes_NF, 1).T) - 1
    totals = np.zeros((tables[0].costs.shape[-1], len(codes_NF)), tables[0].costs.dtype)
    for columns, costs in tables:
        # The place of a row's choices in the table, which is read as one long list. int32 is enough, and
        # half as much memory as int64 for a million rows.
        place = np.zeros(len(codes_NF), np.int32)
        for column, choices in zip(
            columns, costs.shape, strict=False
        ):  # the last axis of costs has no column
            if choices > 1:  # a single choice has index 0 and moves nothing
                place *= choices
                place += choice_FN[column]
        for k, row in enumerate(totals):
            join(row, costs[..., k].ravel()[place], out=row)
    return totals


def cost_tables(
    space: Space,
    classes: int,
    channels: int,
    cost: CostFn,
    join: np.ufunc = np.add,
    dtype: type = np.int64,
) -> Iterator[CostTable]:
    """Tables for the stem, the blocks and the head; `total` adds them up.

    Args:
        space: whose architectures are costed.
        classes: outputs of the classifier.
        channels: input channels.
        cost: a function that returns the costs of one layer; it is called with every layer that some
            architecture has.
        join: how the costs of a stage's blocks become one, np.add or np.maximum.
        dtype: of the costs.
    """
    yield _stem_table(space, channels, cost, dtype)
    sizes = map_sizes(space)
    for stage in range(len(space.stages)):
        first = _first_block_costs(space, stage, sizes[stage], cost, dtype)
        later = []
        for block in range(1, space.stages[stage].depth[-1]):
            later.append(_later_block_costs(space, stage, block, sizes[stage + 1], cost, dtype))
        if space.granularity == "stage":
            yield _stage_table(space, stage, first, later, join)
        else:  # one table for a stage would have a factor of kernels and expansions for each block
            yield from _block_tables(space, stage, first, later)
    yield _head_table(space, classes, sizes[-1], cost, dtype)


def _grid(
    cost: CostFn, layer: Callable[..., LayerSpec], options: Sequence[Sequence[float]], dtype: type
) -> Numbers:
    """(*options, costs) of `layer(*choices)`, for every combination of choices."""
    # `product` varies the last option fastest, which is the order that `reshape` expects.
    costs = [cost(layer(*choices)) for choices in product(*options)]
    return np.array(costs, dtype).reshape(*map(len, options), -1)


def _stem_table(space: Space, channels: int, cost: CostFn, dtype: type) -> CostTable:
    """Costs of the stem by resolution and width, and in a deep one by middle width and residual layers."""
    at, stem = space.column_index, space.stem
    columns = [at["resolution", 0], at["width", 0]]
    middles: Sequence[int] = (0,)
    residuals: Sequence[int] = (0,)
    if stem.deep:
        columns += [at["stem", 0], at["stem", 1]]
        middles, residuals = stem.deep.middle, stem.deep.residual

    def layer(resolution: int, width: int, middle: int, residual: int) -> StemSpec:
        return stem_spec(space, resolution, channels, width, middle, residual)

    return CostTable(
        tuple(columns), _grid(cost, layer, [space.resolution, stem.width, middles, residuals], dtype)
    )


def _first_block_costs(space: Space, stage: int, sizes: Sequence[int], cost: CostFn, dtype: type) -> Numbers:
    """(resolution, input width, width, kernel, expand, costs) of the first block of a stage.

    sizes: side of the block's input at every resolution.
    """
    choices = space.stages[stage]

    def layer(size: int, inp: int, width: int, kernel: int, expand: float) -> BlockSpec:
        return _block_layer(space, stage, 0, inp, size, BlockChoice(width, kernel, expand))

    kernels = space.kernels_of(stage, 0)
    options = [sizes, space.widths_before(stage), choices.width, kernels, choices.expand]
    return _grid(cost, layer, options, dtype)


def _later_block_costs(
    space: Space, stage: int, block: int, sizes: Sequence[int], cost: CostFn, dtype: type
) -> Numbers:
    """(resolution, width, kernel, expand, costs) of another block of a stage.

    Its input is as wide as its output.
    """
    choices = space.stages[stage]

    def layer(size: int, width: int, kernel: int, expand: float) -> BlockSpec:
        return _block_layer(space, stage, block, width, size, BlockChoice(width, kernel, expand))

    kernels = space.kernels_of(stage, block)
    return _grid(cost, layer, [sizes, choices.width, kernels, choices.expand], dtype)


def _block_layer(space: Space, stage: int, block: int, inp: int, size: int, choice: BlockChoice) -> BlockSpec:
    """The spec of a block that reads a `size` x `size` map of `inp` channels."""
    kind = block_kind(space.stages[stage].block)
    return kind.spec(space.block_settings(stage), space.block_position(stage, block, inp), size, choice)


def _stage_table(
    space: Space, stage: int, first: Numbers, later: Sequence[Numbers], join: np.ufunc
) -> CostTable:
    """One table for all blocks of a stage, whose kernel and expansion are chosen together."""
    at = space.column_index
    joined = [first]  # of the first block, of the first two, and so on
    for costs in later:
        joined.append(join(joined[-1], costs[:, None]))  # the same for every input width of the first block
    by_depth = [joined[depth - 1] for depth in space.stages[stage].depth]
    columns = (
        at["resolution", 0],
        at["width", stage],
        at["width", stage + 1],
        at["kernel", stage],
        at["expand", stage],
        at["depth", stage],
    )
    return CostTable(columns, np.stack(by_depth, axis=-2))


def _block_tables(space: Space, stage: int, first: Numbers, later: Sequence[Numbers]) -> Iterator[CostTable]:
    """One table for each block of a stage; a block costs nothing where the stage is not that deep."""
    at = space.column_index
    depths = space.stages[stage].depth
    for block, costs in enumerate([first, *later]):
        slot = space.slot(stage, block)
        widths = [at["width", stage], at["width", stage + 1]]
        if block > 0:  # input and output of later blocks have the stage's width, which is one column
            widths = widths[1:]
        by_depth = [costs if depth > block else np.zeros_like(costs) for depth in depths]
        columns = (at["resolution", 0], *widths, at["kernel", slot], at["expand", slot], at["depth", stage])
        yield CostTable(columns, np.stack(by_depth, axis=-2))


def _head_table(space: Space, classes: int, sizes: Sequence[int], cost: CostFn, dtype: type) -> CostTable:
    """Costs of head and classifier by resolution, last width and, if the space has a head, its width."""
    at, last = space.column_index, len(space.stages)
    columns = [at["resolution", 0], at["width", last]]
    widths: Sequence[int] = (0,)
    if space.head:
        columns.append(at["width", last + 1])
        widths = space.head.width

    def layer(size: int, inp: int, width: int) -> HeadSpec:
        return head_spec(space.head, size, inp, width, classes)

    return CostTable(tuple(columns), _grid(cost, layer, [sizes, space.widths_before(last), widths], dtype))
