"""The kinds of block. A new kind is a file in `kinds` and a line here."""

from engine.blocks.kind import BlockKind
from engine.blocks.kinds.basic import BASIC
from engine.blocks.kinds.bottleneck import BOTTLENECK
from engine.blocks.kinds.conv import CONV
from engine.blocks.kinds.fused import FUSED
from engine.blocks.kinds.inverted import INVERTED
from engine.blocks.kinds.universal import UNIVERSAL
from engine.errors import UserError

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
