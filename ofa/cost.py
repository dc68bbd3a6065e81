"""What an architecture costs, in closed form: MACs, parameters, peak memory, file size; of one, or of a
million encoded ones at once.

Convolutions and linear layers count as MACs, as in the published tables; biases, BatchNorm and activations
cost none.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.blocks.layer_specs import (
    BlockSpec,
    HeadSpec,
    LayerSpec,
    StemSpec,
    Table,
    halve,
    squeeze_width,
    tables,
    total,
)
from ofa.space.space import Arch, Codes, Space, encode

FLOAT_BYTES = 4
# Of an ONNX file as `python -m export.onnx` writes it, beside the weights: fitted to exported files, see
# docs/log.md.
HEADER_BYTES, ENTRY_BYTES, METADATA_BYTES, CLASS_BYTES = 300, 167, 1420, 12


class Cost(NamedTuple):
    """macs: multiply-accumulates of one image. params: trainable scalars, BatchNorm's included."""

    macs: NDArray[np.int64]
    params: NDArray[np.int64]


class Footprint(NamedTuple):
    """Bytes that a device needs, in float32. See `footprints_of`."""

    memory: NDArray[np.int64]
    file: NDArray[np.int64]


def cost_of(space: Space, arch: Arch, classes: int = 1000, channels: int = 3) -> tuple[int, int]:
    """(MACs, parameters) of one architecture for `classes` classes and `channels` input channels."""
    cost = costs_of(space, encode(space, arch)[None], classes, channels)
    return int(cost.macs[0]), int(cost.params[0])


def costs_of(space: Space, codes_NF: Codes, classes: int = 1000, channels: int = 3) -> Cost:
    """Costs of every row. A million rows take about half a second when kernels are chosen per stage, 2 s per
    block."""
    macs, params = total(_cost_tables(space, classes, channels), codes_NF)
    return Cost(macs, params)


def footprints_of(space: Space, codes_NF: Codes, classes: int = 1000, channels: int = 3) -> Footprint:
    """Peak activation memory and ONNX file size of every row, in bytes.

    memory: the largest sum, over the layers in the order in which they run, of the tensors that must exist
        while a layer runs:
    its inputs, its output, and what a later layer still reads (a block's input until its shortcut is added).
    One float32 image; BatchNorm is folded; activations, sums and squeeze-and-excitation's scaling work in
    place. Weights are not in it: a runtime that does not map them from the file needs those bytes beside.

    file: 4 bytes for each stored number (a folded BatchNorm is one bias per channel), and what the format and
        the metadata take,
    with class names of 8 letters. Within 1% of exported files, those of long class names and few weights
    apart.
    """
    (memory,) = total(_memory_tables(space, classes, channels), codes_NF, np.maximum)
    described = HEADER_BYTES + METADATA_BYTES + CLASS_BYTES * classes
    numbers, entries = total(_file_tables(space, classes, channels), codes_NF)
    return Footprint(FLOAT_BYTES * memory, FLOAT_BYTES * numbers + ENTRY_BYTES * entries + described)


@lru_cache(maxsize=8)
def _cost_tables(space: Space, classes: int, channels: int) -> tuple[Table, ...]:
    return tuple(tables(space, classes, channels, cost_of_layer))


@lru_cache(maxsize=8)
def _memory_tables(space: Space, classes: int, channels: int) -> tuple[Table, ...]:
    return tuple(tables(space, classes, channels, lambda piece: (memory_of_layer(piece),), np.maximum))


@lru_cache(maxsize=8)
def _file_tables(space: Space, classes: int, channels: int) -> tuple[Table, ...]:
    return tuple(tables(space, classes, channels, stored_of_layer))


def cost_of_layer(piece: LayerSpec) -> tuple[int, int]:
    """(MACs, parameters)."""
    match piece:
        case StemSpec():
            path = _stem_path(piece)
            weights = sum(9 * a * b for a, b in pairwise(path))
            return halve(piece.size, piece.stride) ** 2 * weights, weights + 2 * sum(path[1:])
        case BlockSpec(block="bottleneck"):
            return _cost_of_bottleneck(piece)
        case BlockSpec():
            return _cost_of_inverted(piece)
        case HeadSpec():
            return _cost_of_head(piece)


def _stem_path(stem: StemSpec) -> list[int]:
    return [stem.channels, *[stem.middle] * (1 + stem.residual if stem.deep else 0), stem.width]


def _cost_of_inverted(b: BlockSpec) -> tuple[int, int]:
    after = halve(b.size, b.stride)
    weights = [(after**2, b.kernel**2 * b.hidden), (after**2, b.hidden * b.out)]
    extra = 2 * b.hidden + 2 * b.out
    if b.expands:
        weights.append((b.size**2, b.inp * b.hidden))
        extra += 2 * b.hidden
    if b.se:
        squeeze = squeeze_width(b.hidden)
        weights.append((1, 2 * b.hidden * squeeze))
        extra += b.hidden + squeeze
    if b.projects:
        weights.append((after**2, b.inp * b.out))
    return sum(area * w for area, w in weights), sum(w for _, w in weights) + extra


def _cost_of_bottleneck(b: BlockSpec) -> tuple[int, int]:
    shortcut = b.inp * b.out if b.projects else 0
    later = b.kernel**2 * b.hidden**2 + b.hidden * b.out + shortcut
    norms = 4 * b.hidden + 2 * b.out + (2 * b.out if b.projects else 0)
    return b.size**2 * b.inp * b.hidden + halve(
        b.size, b.stride
    ) ** 2 * later, b.inp * b.hidden + later + norms


def _cost_of_head(h: HeadSpec) -> tuple[int, int]:
    macs = h.size**2 * h.inp * h.wide
    params = (h.inp + 2) * h.wide
    pooled = h.wide or h.inp
    if h.width:
        macs, params = macs + pooled * h.width, params + pooled * h.width + h.bias * h.width
    features = h.width or pooled
    return macs + features * h.classes, params + (features + 1) * h.classes


def stored_of_layer(piece: LayerSpec) -> tuple[int, int]:
    """(numbers stored in an ONNX file, entries of its graph). BatchNorm is folded; swish takes two nodes.

    A convolution or linear layer makes two entries, one for the node and one for its tensors; every other
    node makes one.
    """
    params = cost_of_layer(piece)[1]
    act = 2 if piece.act == "swish" else 1
    match piece:
        case StemSpec():
            path = _stem_path(piece)
            return params - sum(path[1:]), (len(path) - 1) * (2 + act) + piece.residual + piece.deep
        case BlockSpec(block="bottleneck"):
            entries = 3 * (2 + act) + 1 + 2 * piece.projects + (piece.stride > 1)
            return params - 2 * piece.hidden - piece.out - piece.projects * piece.out, entries
        case BlockSpec():
            entries = (1 + piece.expands) * (2 + act) + 2 + 8 * piece.se + piece.residual + 2 * piece.projects
            pools = piece.residual and piece.stride > 1
            return params - (1 + piece.expands) * piece.hidden - piece.out, entries + pools
        case HeadSpec():
            return params - piece.wide, 3 + (2 + act if piece.wide else 0) + (2 + act if piece.width else 0)


def memory_of_layer(piece: LayerSpec) -> int:
    """The most float32 numbers that are alive at once while the piece runs, its input included. See
    `footprints_of`."""
    match piece:
        case StemSpec():
            after = halve(piece.size, piece.stride) ** 2
            path = _stem_path(piece)
            first = piece.size**2 * piece.channels + after * path[1]
            later = [after * (a + b) for a, b in pairwise(path[1:])]
            pool = (after + halve(halve(piece.size, piece.stride), 2) ** 2) * piece.width if piece.deep else 0
            return max(first, *later, pool)
        case BlockSpec():
            return _memory_of_block(piece)
        case HeadSpec():
            areas = [
                piece.size**2 * piece.inp,
                *([piece.size**2 * piece.wide] if piece.wide else []),
                piece.wide or piece.inp,
            ]
            vectors = [*([piece.width] if piece.width else []), piece.classes]
            return max(a + b for a, b in pairwise(areas + vectors))


def _memory_of_block(b: BlockSpec) -> int:
    before, after = b.size**2, halve(b.size, b.stride) ** 2
    kept = b.inp * before if b.residual else 0  # the block's input, until its shortcut is taken
    out = b.out * after
    middle = b.hidden * after
    layers = [middle + out + kept]
    if b.expands:
        layers += [b.inp * before + b.hidden * before, b.hidden * before + middle + kept]
    else:
        layers += [b.inp * before + middle]
    if b.se:
        layers.append(middle + b.hidden + squeeze_width(b.hidden) + kept)
    if b.residual and b.stride > 1:
        layers.append(out + kept + b.inp * after)
    if b.projects:
        layers.append(out + (b.inp * after if b.stride > 1 else kept) + out)
    return max(layers)
