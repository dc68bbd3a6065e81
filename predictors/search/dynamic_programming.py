"""The exact front of a score that is a sum over choices, against a cost that is a sum over blocks.

It is found by dynamic programming. Blocks are taken in order. Of the beginnings of networks that agree in
every choice that a later block reads (resolution, width, depth) only those can end in an optimum which no
other beats in score and cost: their Pareto front. The fronts stay small, a few hundred beginnings, because a
front grows like the sum of what is worth choosing and not like the product of what can be chosen.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats, pareto_front
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import ScoreFn

SAMPLES = 4_000  # random architectures to which an additive score is fitted


class LayerCost(NamedTuple):
    """Cost of one group of layers, such as a block, by the choices that it reads.

    columns: the columns of the codes that it reads.
    cost: an array with an axis for each of these columns, and axes of length 1 after them.
    """

    columns: tuple[int, ...]
    cost: NDArray[Any]


def fit_additive(
    space: Space, score: ScoreFn, parts: Sequence[LayerCost], rng: np.random.Generator
) -> list[Floats]:
    """Fit `score` by a sum over parts, by least squares on random architectures.

    A part is a group of layers. It owns the choices that no part before it reads, and the sum has one term
    for each combination of them. The fit is exact, up to a constant, if `score` is such a sum.

    Args:
        space: of the architectures.
        score: of encoded architectures.
        parts: the groups of layers in order; only their columns matter here.
        rng: of the random architectures.

    Returns:
        For each part the terms (options,), one for each combination of the choices that it owns.
    """
    rows = sample_codes(space, SAMPLES, rng)
    return fit_additive_to(space, rows, score(rows), parts)


def fit_additive_to(space: Space, rows: Codes, y: Floats, parts: Sequence[LayerCost]) -> list[Floats]:
    """Fit the scores `y` (N,) of architectures `rows` (N, F) as `fit_additive` does."""
    blocks = []
    for new in first_read(parts):
        # The number of the combination that each row has, in the order of `options_of`.
        option = np.zeros(len(rows), np.intp)
        for c in new:
            option = option * len(space.columns[c].values) + np.maximum(rows[:, c], 1) - 1
        one_hot = option[:, None] == np.arange(len(options_of(space, new)))
        # A block that is not there adds nothing, whatever its codes are.
        blocks.append(one_hot & ~asleep_rows(space, rows, new)[:, None])
    X = np.concatenate(blocks, axis=1).astype(np.float64)
    X -= X.mean(0)  # centred, as y is below: then the constant needs no column
    # The one-hot columns of a part that is always there sum to 1, so the equations have many solutions: the
    # pseudo-inverse takes the smallest one. The singular values of lstsq did not always converge here; the
    # eigenvalues of a symmetric matrix do.
    weight = np.linalg.pinv(X.T @ X, rcond=1e-9, hermitian=True) @ (X.T @ (y - y.mean()))
    ends = np.cumsum([block.shape[1] for block in blocks])
    return np.split(weight, ends[:-1])


def merge_fronts(space: Space, gains: Sequence[Floats], parts: Sequence[LayerCost]) -> Codes:
    """The Pareto front of architectures of an additive score against an additive cost, cheapest first.

    Args:
        space: of the architectures.
        gains: what `fit_additive` returns for `parts`.
        parts: their costs sum up to that of the architecture; together they read every choice.

    Returns:
        Encoded architectures (N, F), none of infinite cost.
    """
    # Beginnings of networks: the choices so far, and what they score and cost.
    rows, score, cost = np.zeros((1, len(space.columns)), np.uint8), np.zeros(1), np.zeros(1)
    for i, (part, new) in enumerate(zip(parts, first_read(parts), strict=True)):
        # 1. Every beginning is continued with every option for the choices that this part is first to read.
        options, asleep = options_of(space, new), asleep_rows(space, rows, new)[:, None]
        costs = cost[:, None] + part.cost.ravel()[places(part, rows, new, options)]
        # A latency is infinite at a resolution that its table does not cover.
        possible = np.isfinite(costs)
        possible[:, 1:] &= ~asleep  # a block that is not there has one option
        parent, option = np.nonzero(possible)
        # 2. What the continued beginnings score and cost.
        score = (score[:, None] + np.where(asleep, 0.0, gains[i]))[parent, option]
        cost = costs[parent, option]
        taken = np.where(asleep[parent], 0, options[option])
        # 3. Of those that agree in all that a later part reads, only the front can end in an optimum.
        group = np.zeros(len(parent), np.int64)
        for c in sorted(columns_of(parts[: i + 1]) & columns_of(parts[i + 1 :])):
            code = taken[:, new.index(c)] if c in new else rows[parent, c]
            group = group * len(space.columns[c].values) + code
        kept = _fronts_of_groups(group, score, cost)
        rows, score, cost = rows[parent[kept]], score[kept], cost[kept]
        rows[:, new] = taken[kept]
    return rows


def columns_of(parts: Sequence[LayerCost]) -> set[int]:
    """The columns that any of the parts reads."""
    found = set[int]()
    for part in parts:
        found.update(part.columns)
    return found


def first_read(parts: Sequence[LayerCost]) -> list[list[int]]:
    """For each part the columns that none before it reads."""
    return [sorted(set(part.columns) - columns_of(parts[:i])) for i, part in enumerate(parts)]


def options_of(space: Space, new: list[int]) -> Codes:
    """All combinations of codes of the columns `new`, in C order: (options, columns)."""
    codes = [range(1, len(space.columns[c].values) + 1) for c in new]
    combinations = list(product(*codes))
    return np.array(combinations, np.uint8).reshape(len(combinations), len(new))


def asleep_rows(space: Space, rows: Codes, new: list[int]) -> NDArray[np.bool_]:
    """(N,) whether the columns `new` are those of a block past the depth that the rows have chosen."""
    blocks = []
    if space.granularity == "block":
        blocks = [space.columns[c] for c in new if space.columns[c].field == "kernel"]
    if not blocks:
        return np.zeros(len(rows), np.bool_)
    slot = blocks[0].position
    stage = space.slot_stage[slot]
    block, column = slot - space.slot_stage.index(stage), space.column_index["depth", stage]
    depth = np.array(space.stages[stage].depth)[np.maximum(rows[:, column], 1) - 1]
    # The first block of a stage is always there, and its part is the one that chooses the depth.
    return (depth <= block) & (block > 0)


def places(part: LayerCost, rows: Codes, new: list[int], options: Codes) -> NDArray[np.intp]:
    """Where in the flat array of costs each row stands with each option: (rows, options)."""
    place = np.zeros((len(rows), len(options)), np.intp)
    # Not strict: a stem or head with fewer choices has further axes of length 1.
    for c, choices in zip(part.columns, part.cost.shape, strict=False):
        code = options[:, new.index(c)] if c in new else rows[:, c, None]
        place = place * choices + np.maximum(code, 1) - 1  # the code of an inactive block is 0
    return place


def _fronts_of_groups(group: NDArray[np.int64], score: Floats, cost: Floats) -> NDArray[np.intp]:
    """Indices of what nothing in the same group beats, by group and cost."""
    if not len(group):
        return np.empty(0, np.intp)
    # Every group is lifted above all of the group before it, in score and in cost. Then no group beats
    # another, and one front of all points holds the fronts of the groups, one after the other.
    lifted_score = score + group * (np.ptp(score) + 1)
    lifted_cost = group * (cost.max() + 1) + cost
    return pareto_front(lifted_score, lifted_cost[:, None])
