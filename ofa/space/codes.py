"""Architectures as rows of numbers, so that a million are sampled, costed or mutated at once.

A row of codes (uint8) holds, for each column of the space, 1 + the index of the choice, and 0 where a block
is inactive. Every row belongs to one `Arch`, and every `Arch` to one row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofa.space.arch import Arch, arch_of, check_arch, chosen_value, is_active
from ofa.space.space import Space

Codes = NDArray[np.uint8]


def encode(space: Space, arch: Arch) -> Codes:
    """The row of codes (F,) of `arch`.

    Raises:
        UserError: a value is not among the space's choices; the sentence names it.
    """
    check_arch(space, arch)
    row = np.zeros(len(space.columns), np.uint8)
    for i, column in enumerate(space.columns):
        if is_active(space, arch, column):
            row[i] = 1 + column.values.index(chosen_value(arch, column))
    return row


def decode(space: Space, codes_F: Codes) -> Arch:
    """The architecture of one row of codes (F,)."""
    values = []
    for column, code in zip(space.columns, codes_F, strict=True):
        values.append(column.values[code - 1] if code else 0)
    return arch_of(values, space)


def canonical(space: Space, codes_NF: Codes) -> Codes:
    """The same rows (N, F) with every inactive block set to 0.

    A newly active block that holds 0 gets its first choice.

    Args:
        space: of the architectures.
        codes_NF: rows whose depths may disagree with the zeros of their blocks, as after a change.
    """
    # Depths come first, since they decide which other columns are active.
    depths = []
    for i, stage in enumerate(space.stages):
        depths.append(np.array(stage.depth)[codes_NF[:, space.column_index["depth", i]] - 1])
    active_NF = _active(space, np.stack(depths, axis=1))
    return np.where(active_NF, np.maximum(codes_NF, 1), 0).astype(np.uint8)


def _active(space: Space, depth_NS: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, F): which columns are read by architectures of the given depths."""
    active = np.ones((len(depth_NS), len(space.columns)), np.bool_)
    # Kernels chosen per stage are read at every depth, since no stage has depth 0.
    if space.granularity == "block":
        for slot, stage in enumerate(space.slot_stage):
            reached = depth_NS[:, stage] > slot - space.slot(stage, 0)
            active[:, space.column_index["kernel", slot]] = reached
            active[:, space.column_index["expand", slot]] = reached
    return active


def sample(space: Space, rng: np.random.Generator) -> Arch:
    """Draw one architecture, every choice uniform and independent (BigNAS, 2020, arXiv:2003.11142)."""
    return decode(space, sample_codes(space, 1, rng)[0])


def sample_codes(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """Draw `count` rows (count, F), every choice uniform and independent."""
    return canonical(space, _drawn(space, count, rng))


def _drawn(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """(count, F): every column uniform, whether its block is active or not."""
    columns = [rng.integers(1, n, count, np.uint8, endpoint=True) for n in space.cardinalities]
    return np.stack(columns, axis=1)


def mutate(space: Space, codes_NF: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """Mutate each row: every choice is drawn anew with some probability.

    The choices of a block that becomes active thereby are drawn, too.

    Args:
        space: of the architectures.
        codes_NF: the rows; they are not changed.
        probability: of each choice to be drawn anew, which may draw the same value again.
        rng: draws.

    Returns:
        The mutated rows (N, F).
    """
    # Fresh values for every column, also of inactive blocks (code 0), which may become active.
    fresh_NF = _drawn(space, len(codes_NF), rng)
    renewed_NF = (rng.random(codes_NF.shape) < probability) | (codes_NF == 0)
    # Blocks that stay inactive lose their fresh values again.
    return canonical(space, np.where(renewed_NF, fresh_NF, codes_NF))


def cross(space: Space, codes_NF: Codes, others_NF: Codes, rng: np.random.Generator) -> Codes:
    """Cross pairs of rows: each choice is that of one of the two parents, with even odds.

    Where only one parent has a block, the block's choices are that parent's.

    Args:
        space: of the architectures.
        codes_NF: the first parents.
        others_NF: the second parents, one for each row of `codes_NF`.
        rng: draws.

    Returns:
        The children (N, F).
    """
    # Code 0 is an inactive block: a child may be as deep as the parent that has the block.
    from_other_NF = ((rng.random(codes_NF.shape) < 0.5) | (codes_NF == 0)) & (others_NF != 0)
    return canonical(space, np.where(from_other_NF, others_NF, codes_NF))


def thermometer(space: Space, codes_NF: Codes) -> NDArray[np.float32]:
    """The thermometer code of each row, which predictors learn from: (N, sum of cardinalities).

    Each entry says whether a choice is some value or a later one. Neighbouring choices share most of their
    code, and blocks past a stage's depth are zeros.
    """
    # Measured against one-hot and ordinal codes it was never far from the best one (docs/log.md).
    parts = []
    for i, choices in enumerate(space.cardinalities):
        parts.append(codes_NF[:, i, None] >= np.arange(1, choices + 1))
    return np.concatenate(parts, axis=1).astype(np.float32)
