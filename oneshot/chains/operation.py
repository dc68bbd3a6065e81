"""What a layer of a chain may be: an inverted bottleneck, named by its kernel and expansion, or a skip."""

import re
from typing import NamedTuple

SKIP = "skip"  # the layer passes its input on


class BlockOperation(NamedTuple):
    """An inverted bottleneck.

    Args:
        kernel: of its depthwise convolution.
        expand: hidden channels over the channels of its input.
        groups: of its two 1x1 convolutions.
    """

    kernel: int
    expand: int
    groups: int = 1


def parse_operation(name: str) -> BlockOperation | None:
    """What `k5_e6` means: a kernel of 5, an expansion of 6; `k3_e1_g2` has two groups. None: it is a skip.

    Raises:
        ValueError: it is neither. pydantic makes a validation error of it.
    """
    if name == SKIP:
        return None
    match = re.fullmatch(r"k([1-9]\d?)_e([1-9]\d?)(?:_g([2-9]))?", name, re.ASCII)
    if match is None or int(match[1]) % 2 == 0:
        raise ValueError(
            f"'{name}' is no operation of a chain; write k5_e6 for an odd kernel of 5 and an expansion of 6, "
            "k3_e1_g2 for groups, or skip"
        )
    kernel, expand, groups = match.groups("1")
    return BlockOperation(int(kernel), int(expand), int(groups))
