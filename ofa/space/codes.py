"""Architectures as rows of numbers: a million are sampled, costed, mutated and encoded at once.

A row of codes (uint8) holds, for each column of the space, 1 + the index of the choice, and 0 where a block
is inactive. Rows and `Arch` are one-to-one.
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
    """The architecture of one row of codes."""
    values = []
    for column, code in zip(space.columns, codes_F, strict=True):
        values.append(column.values[code - 1] if code else 0)
    return arch_of(values, space)


def canonical(space: Space, codes_NF: Codes) -> Codes:
    """The same rows with every inactive block set to 0.

    A newly active block that holds 0 gets its first choice.
    """
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
    """One architecture, every choice uniform (BigNAS)."""
    return decode(space, sample_codes(space, 1, rng)[0])


def sample_codes(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """`count` rows, every choice uniform and independent."""
    return canonical(space, _drawn(space, count, rng))


def _drawn(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """(count, F): every column uniform, whether its block is active or not."""
    columns = [rng.integers(1, n, count, np.uint8, endpoint=True) for n in space.cardinalities]
    return np.stack(columns, axis=1)


def mutate(space: Space, codes_NF: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """Each row with each choice drawn anew with `probability`.

    The choices of a block that thereby wakes up are drawn, too.
    """
    # Fresh values for every column, also of sleeping blocks (code 0): a block that wakes up needs one.
    fresh_NF = _drawn(space, len(codes_NF), rng)
    renewed_NF = (rng.random(codes_NF.shape) < probability) | (codes_NF == 0)
    return canonical(space, np.where(renewed_NF, fresh_NF, codes_NF))


def cross(space: Space, codes_NF: Codes, others_NF: Codes, rng: np.random.Generator) -> Codes:
    """Each choice from one of two parents, with even odds.

    Where only one parent has the block, the choice is that parent's.
    """
    # Code 0 is a sleeping block: a child that is as deep as the other parent takes the other's choice.
    from_other_NF = ((rng.random(codes_NF.shape) < 0.5) | (codes_NF == 0)) & (others_NF != 0)
    return canonical(space, np.where(from_other_NF, others_NF, codes_NF))


def thermometer(space: Space, codes_NF: Codes) -> NDArray[np.float32]:
    """(N, sum of cardinalities) thermometer code, what predictors see.

    It says for each choice whether it is this value or a later one. Neighbouring choices share most of their
    code, and blocks past a stage's depth are zeros.
    """
    parts = [codes_NF[:, i, None] >= np.arange(1, n + 1) for i, n in enumerate(space.cardinalities)]
    return np.concatenate(parts, axis=1).astype(np.float32)
