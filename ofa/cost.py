"""What an architecture costs, in closed form: MACs, parameters, peak memory, file size.

The functions cost one architecture, or a million encoded ones at once. MACs are those of convolutions and
linear layers, as in the published tables; biases, BatchNorm and activations count as none. The formulas of
each kind of layer are in its own file under `engine.blocks`.
"""

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.blocks.head import HeadSpec, memory_of_head, stored_of_head
from engine.blocks.kind import BlockSpec
from engine.blocks.layers import LayerSpec, cost_of_layer
from engine.blocks.stem import StemSpec, memory_of_stem, stored_of_stem
from engine.blocks.table import block_kind
from ofa.layers import CostTable, cost_tables, total
from ofa.space.arch import Arch, largest
from ofa.space.codes import Codes, encode
from ofa.space.space import Space

FLOAT_BYTES = 4
# Bytes of an ONNX file as `python -m export.onnx` writes it, beside the weights: what exported files have at
# most, since a limit of the file size must hold. tests/ofa/test_footprint.py compares.
ENTRY_BYTES = 182
# Metadata without architecture and class names. Files have 1450; tuning adds 220, the origin of weights 230,
# a crop and long names 100. One network may be exported before it is tuned and after, so all of it counts.
METADATA_BYTES = 2000
CHANNEL_BYTES = 44  # mean and deviation
CLASS_BYTES = 12


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
    # One row of the same tables that searches read, so that one and many cannot disagree.
    cost = costs_of(space, encode(space, arch)[None], classes, channels)
    return int(cost.macs[0]), int(cost.params[0])


def costs_of(space: Space, codes_NF: Codes, classes: int, channels: int) -> Cost:
    """MACs (N,) and parameters (N,) of every row of codes.

    A million rows take about half a second in a space whose kernels are chosen per stage, and 2 s where they
    are chosen per block.

    Args:
        space: of the architectures.
        codes_NF: what `ofa.space.codes.encode` makes, one row for each architecture.
        classes: outputs of the classifier.
        channels: input channels.
    """
    macs, params = total(_cost_tables(space, classes, channels), codes_NF)
    return Cost(macs, params)


def footprints_of(space: Space, codes_NF: Codes, classes: int, channels: int) -> Footprint:
    """Peak activation memory and ONNX file size of every row, in bytes.

    memory: while a layer runs, some tensors must exist: its inputs, its output, and what a later layer still
    reads (a block's input until its shortcut is added). The memory is the largest sum of these over all
    layers, for one float32 image. BatchNorm is folded; activations, sums and the scaling of
    squeeze-and-excitation work in place. Weights are not in it: a runtime that does not map them from the
    file needs their bytes in addition.

    file: 4 bytes for each stored number (a folded BatchNorm is one bias per channel), and what the format and
    the metadata take at most, with class names of 8 letters on average. An exported file is smaller, by less
    than 2% or 1.6 kB. Longer class names and `--bake` add to it. Large networks of MobileNetV4's
    blocks, whose graphs have few activations, may take 1 kB more.

    Args:
        space: of the architectures.
        codes_NF: encoded architectures.
        classes: outputs of the classifier.
        channels: input channels.

    Returns:
        Bytes (N,) of each.
    """
    # Memory is a maximum over layers, not a sum: only one layer runs at a time.
    (memory,) = total(_memory_tables(space, classes, channels), codes_NF, np.maximum)
    described = metadata_bytes(space, classes, channels)
    numbers, entries = total(_file_tables(space, classes, channels), codes_NF)
    return Footprint(FLOAT_BYTES * memory, FLOAT_BYTES * numbers + ENTRY_BYTES * entries + described)


@lru_cache(maxsize=8)
def metadata_bytes(space: Space, classes: int, channels: int) -> int:
    """The most bytes that the metadata of an exported file takes, whatever the architecture of the space."""
    # The same for all architectures, so that the file size stays a sum over layers and a constant.
    architecture = json.dumps(largest(space).model_dump(mode="json"))
    return METADATA_BYTES + len(architecture) + CHANNEL_BYTES * channels + CLASS_BYTES * classes


# Searches ask for the costs of one space thousands of times, a few rows at a time. Making a table anew would
# take longer than reading the rows; a space is frozen, so it can be a key.
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
