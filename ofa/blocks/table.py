"""The kinds of block. A new kind is a file in `kinds` and a line here."""

from engine.errors import UserError
from ofa.blocks.kind import BlockKind
from ofa.blocks.kinds.basic import BASIC
from ofa.blocks.kinds.bottleneck import BOTTLENECK
from ofa.blocks.kinds.conv import CONV
from ofa.blocks.kinds.fused import FUSED
from ofa.blocks.kinds.inverted import INVERTED
from ofa.blocks.kinds.universal import UNIVERSAL

# The names that a space's YAML uses.
BLOCKS: dict[str, BlockKind] = {
    "inverted": INVERTED,
    "bottleneck": BOTTLENECK,
    "basic": BASIC,
    "fused": FUSED,
    "universal": UNIVERSAL,
    "conv": CONV,
}


def block_kind(name: str) -> BlockKind:
    """The kind of that name.

    Raises:
        UserError: there is none.
    """
    if name not in BLOCKS:
        raise UserError(f"There is no block '{name}'; the kinds are {', '.join(BLOCKS)}.")
    return BLOCKS[name]
