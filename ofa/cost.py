"""What an architecture costs, in closed form: MACs, parameters, peak memory, file size.

The cost of one architecture, or of a million encoded ones at once. Convolutions and linear layers count as
MACs, as in the published tables; biases, BatchNorm and activations cost none. Each kind of layer says what it
costs in its own file under `ofa.blocks`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.blocks.head import HeadSpec, cost_of_head, memory_of_head, stored_of_head
from ofa.blocks.kind import BlockSpec
from ofa.blocks.stem import StemSpec, cost_of_stem, memory_of_stem, stored_of_stem
from ofa.blocks.table import block_kind
from ofa.layers import CostTable, LayerSpec, cost_tables, total
from ofa.space.arch import Arch
from ofa.space.codes import Codes, encode
from ofa.space.space import Space

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


def cost_of(space: Space, arch: Arch, classes: int, channels: int) -> tuple[int, int]:
    """(MACs, parameters) of one architecture for `classes` classes and `channels` input channels.

    Raises:
        UserError: `arch` is not of `space`.
    """
    cost = costs_of(space, encode(space, arch)[None], classes, channels)
    return int(cost.macs[0]), int(cost.params[0])


def costs_of(space: Space, codes_NF: Codes, classes: int, channels: int) -> Cost:
    """Costs of every row of codes.

    A million rows take about half a second when kernels are chosen per stage, 2 s per block.
    """
    macs, params = total(_cost_tables(space, classes, channels), codes_NF)
    return Cost(macs, params)


def footprints_of(space: Space, codes_NF: Codes, classes: int, channels: int) -> Footprint:
    """Peak activation memory and ONNX file size of every row, in bytes.

    memory: the largest sum, over the layers in the order in which they run, of the tensors that must exist
    while a layer runs: its inputs, its output, and what a later layer still reads (a block's input until its
    shortcut is added). One float32 image; BatchNorm is folded; activations, sums and
    squeeze-and-excitation's scaling work in place. Weights are not in it: a runtime that does not map them
    from the file needs those bytes beside.

    file: 4 bytes for each stored number (a folded BatchNorm is one bias per channel), and what the format and
    the metadata take, with class names of 8 letters. It is within 1% of exported files, except for those with
    long class names and few weights.
    """
    # Memory is a maximum over layers, not a sum: only one layer runs at a time.
    (memory,) = total(_memory_tables(space, classes, channels), codes_NF, np.maximum)
    described = HEADER_BYTES + METADATA_BYTES + CLASS_BYTES * classes
    numbers, entries = total(_file_tables(space, classes, channels), codes_NF)
    return Footprint(FLOAT_BYTES * memory, FLOAT_BYTES * numbers + ENTRY_BYTES * entries + described)


# Searches ask for the costs of one space thousands of times, a few rows at a time.
@lru_cache(maxsize=8)
def _cost_tables(space: Space, classes: int, channels: int) -> tuple[CostTable, ...]:
    return tuple(cost_tables(space, classes, channels, cost_of_layer))


@lru_cache(maxsize=8)
def _memory_tables(space: Space, classes: int, channels: int) -> tuple[CostTable, ...]:
    def memory(layer: LayerSpec) -> tuple[int]:
        return (memory_of_layer(layer),)

    return tuple(cost_tables(space, classes, channels, memory, np.maximum))


@lru_cache(maxsize=8)
def _file_tables(space: Space, classes: int, channels: int) -> tuple[CostTable, ...]:
    return tuple(cost_tables(space, classes, channels, stored_of_layer))


def cost_of_layer(layer: LayerSpec) -> tuple[int, int]:
    """(MACs, parameters)."""
    match layer:
        case StemSpec():
            return cost_of_stem(layer)
        case BlockSpec():
            return block_kind(layer.block).cost(layer)
        case HeadSpec():
            return cost_of_head(layer)


def stored_of_layer(layer: LayerSpec) -> tuple[int, int]:
    """(numbers stored in an ONNX file, entries of its graph), with BatchNorm folded.

    A convolution or linear layer makes two entries, one for the node and one for its tensors; every other
    node makes one.
    """
    match layer:
        case StemSpec():
            return stored_of_stem(layer)
        case BlockSpec():
            return block_kind(layer.block).stored(layer)
        case HeadSpec():
            return stored_of_head(layer)


def memory_of_layer(layer: LayerSpec) -> int:
    """The most float32 numbers that are alive at once while the layer runs, its input included.

    See `footprints_of`.
    """
    match layer:
        case StemSpec():
            return memory_of_stem(layer)
        case BlockSpec():
            return block_kind(layer.block).memory(layer)
        case HeadSpec():
            return memory_of_head(layer)
