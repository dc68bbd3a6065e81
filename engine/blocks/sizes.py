"""Widths, sides and memory: the arithmetic that all layers share."""

from collections.abc import Sequence
from itertools import pairwise


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, but never below 90% of it.

    Source: the code of MobileNetV2 (2018, arXiv:1801.04381).
    """
    # Rounding down from 11 to 8, for example, would lose more than a quarter of the channels.
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def hidden_width(width: int, expand: float) -> int:
    """Channels inside a block.

    Args:
        width: the width that is expanded: of bottleneck and basic blocks their output's, else its input's.
        expand: how many times as many channels there are inside.
    """
    # Expansion 1 means no expansion layer: the width must stay what it is, divisible or not.
    return make_divisible(round(width * expand)) if expand != 1 else width


def head_width(width: int, expand: float) -> int:
    """Channels of the head's convolution before the pool, `expand` times those of the last block."""
    return round(width * expand)


def halve(size: int, stride: int) -> int:
    """Side of the map after a convolution of this stride with 'same' padding."""
    return -(-size // stride)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis under TensorFlow's 'same' padding.

    At stride 2 on an even map there is one more after it than before it; on an odd map, and at stride 1,
    there are as many. Smaller kernels that are centres of larger ones see the same pixels in their middle.

    Args:
        size: of the axis.
        kernel: odd.
        stride: of the convolution.
    """
    reach = (halve(size, stride) - 1) * stride + kernel
    total = max(0, reach - size)
    return total // 2, total - total // 2


def chain_memory(maps: Sequence[int], held: int = 0) -> int:
    """The most numbers alive while layers run one after the other, each from one map to the next.

    Args:
        maps: numbers in the input of the first layer and in the output of every layer.
        held: numbers in the first map if something after the chain still reads it, else 0. The first layer
            has that map as its input anyway, so it counts for the later layers only.
    """
    first, *later = [before + after for before, after in pairwise(maps)]  # each layer's input and output
    return max([first, *(both + held for both in later)])
