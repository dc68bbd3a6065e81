"""The best architectures for a score that is a sum over choices and a cost that is a sum over blocks: exactly, by dynamic programming.

Blocks are taken in order. Of the beginnings of networks that agree in every choice that a later block reads (resolution, width, depth)
only those can end in an optimum which no other beats in score and cost: their Pareto front. The fronts stay small, a few hundred
beginnings, because a front grows like the sum of what is worth choosing and not like the product of what can be chosen.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.cost import tables
from ofa.space import Codes, Space, features, sample_codes
from predictors.constraints import Floats, Scores

SAMPLES = 2_000


class Part(NamedTuple):
    """Cost of one group of layers by the choices it reads: `columns` of the codes, and an array (*choices)."""

    columns: tuple[int, ...]
    cost: NDArray[np.int64]


def parts_of(space: Space, classes: int, channels: int) -> dict[str, list[Part]]:
    """MACs and parameters as sums."""
    found = list(tables(space, classes, channels))
    return {name: [Part(table.columns, table.cost[..., i]) for table in found] for i, name in enumerate(("macs", "params"))}


def fit_additive(space: Space, score: Scores, rng: np.random.Generator) -> list[Floats]:
    """What each code of each column adds to `score`: by least squares on random architectures; exactly, if `score` is such a sum."""
    codes = sample_codes(space, SAMPLES, rng)
    X, y = features(space, codes).astype(np.float64), score(codes)
    weight = np.linalg.lstsq(X - X.mean(0), y - y.mean(), rcond=None)[0]
    return [np.concatenate([[0.0], np.cumsum(w)]) for w in np.split(weight, np.cumsum(space.cardinalities)[:-1])]


def merge_fronts(space: Space, gains: Sequence[Floats], parts: Sequence[Part], most: float = np.inf) -> Codes:
    """The Pareto front of architectures of cost `most` at most, cheapest (and worst) first; empty if nothing is that cheap.

    Args:
        gains: for each column of the space, what each of its codes adds to the score.
        parts: their costs sum up to that of the architecture; together they read every column that can be chosen.
    """
    to_come = np.cumsum([0, *(part.cost.min() for part in reversed(parts))])[::-1]
    rows, score, cost = np.zeros((1, len(space.columns)), np.uint8), np.zeros(1), np.zeros(1)
    known: set[int] = set()
    for i, (columns, table) in enumerate(parts):
        new = sorted(set(columns) - known)
        known.update(new)
        options = np.array(list(product(*(range(1, len(space.columns[c].values) + 1) for c in new))), np.uint8).reshape(-1, len(new))
        asleep = _asleep(space, rows, new)[:, None]
        place = np.zeros((len(rows), len(options)), np.intp)
        for c, choices in zip(columns, table.shape, strict=False):
            place = place * choices + np.maximum(options[:, new.index(c)] if c in new else rows[:, c, None], 1) - 1
        costs = cost[:, None] + table.ravel()[place]
        gain = np.sum([gains[c][options[:, j]] for j, c in enumerate(new)], axis=0) if new else np.zeros(1)
        possible = costs + to_come[i + 1] <= most
        possible[:, 1:] &= ~asleep  # a block that is not there has one option
        parent, option = np.nonzero(possible)
        score = (score[:, None] + np.where(asleep, 0.0, gain))[parent, option]
        cost = costs[parent, option]
        rows_new = np.where(asleep[parent], 0, options[option])
        live = [c for c in known if any(c in part.columns for part in parts[i + 1 :])]
        group = np.zeros(len(parent), np.int64)
        for c in live:
            group = group * len(space.columns[c].values) + (rows_new[:, new.index(c)] if c in new else rows[parent, c])
        kept = _fronts(group, score, cost)
        rows, score, cost = rows[parent[kept]], score[kept], cost[kept]
        rows[:, new] = rows_new[kept]
    return rows


def _asleep(space: Space, rows: Codes, new: list[int]) -> NDArray[np.bool_]:
    """(N,) whether the columns `new` are those of a block past the depth that the rows have chosen."""
    blocks = [space.columns[c] for c in new if space.columns[c].field == "kernel"] if space.granularity == "block" else []
    if not blocks:
        return np.zeros(len(rows), np.bool_)
    stage = space.slot_stage[blocks[0].position]
    block, column = blocks[0].position - space.slot_stage.index(stage), space.column_index["depth", stage]
    return (np.array(space.stages[stage].depth)[np.maximum(rows[:, column], 1) - 1] <= block) & (block > 0)


def _fronts(group: NDArray[np.int64], score: Floats, cost: Floats) -> NDArray[np.intp]:
    """Indices of what nothing in the same group beats, by group and cost."""
    if not len(group):
        return np.empty(0, np.intp)
    order = np.argsort(group * (cost.max() + 1) + cost, kind="stable")
    lifted = score[order] + group[order] * (np.ptp(score) + 1)  # each group above all of the one before
    better = np.concatenate([[True], lifted[1:] > np.maximum.accumulate(lifted)[:-1]])
    order = order[better]
    last = np.concatenate([(np.diff(group[order]) > 0) | (np.diff(cost[order]) > 0), [True]])  # of equally cheap ones, the best
    return order[last]
