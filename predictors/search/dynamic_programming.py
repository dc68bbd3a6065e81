"""The best architectures for a score that is a sum over choices and a cost that is a sum over blocks:
exactly, by dynamic programming.

Blocks are taken in order. Of the beginnings of networks that agree in every choice that a later block reads
(resolution, width, depth) only those can end in an optimum which no other beats in score and cost: their
Pareto front. The fronts stay small, a few hundred beginnings, because a front grows like the sum of what is
worth choosing and not like the product of what can be chosen.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.cost import cost_of_layer
from ofa.layers import cost_tables
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import Floats, Scores

SAMPLES = 4_000


class Part(NamedTuple):
    """Cost of one group of layers by the choices it reads: `columns` of the codes, and an array
    (*choices)."""

    columns: tuple[int, ...]
    cost: NDArray[Any]


def parts_of(space: Space, classes: int, channels: int) -> dict[str, list[Part]]:
    """MACs and parameters as sums."""
    found = list(cost_tables(space, classes, channels, cost_of_layer))
    return {
        name: [Part(table.columns, table.costs[..., i]) for table in found]
        for i, name in enumerate(("macs", "params"))
    }


def fit_additive(
    space: Space, score: Scores, parts: Sequence[Part], rng: np.random.Generator
) -> list[Floats]:
    """For each part what every combination of the choices that it is the first to read adds to `score`.

    By least squares on random architectures: exactly, up to a constant, if `score` is such a sum.
    """
    rows = sample_codes(space, SAMPLES, rng)
    y, blocks = score(rows), []
    for new in _first_read(parts):
        place = np.zeros(len(rows), np.intp)
        for c in new:
            place = place * len(space.columns[c].values) + np.maximum(rows[:, c], 1) - 1
        one_hot = place[:, None] == np.arange(len(_options(space, new)))
        blocks.append(one_hot & ~_asleep(space, rows, new)[:, None])
    X = np.concatenate(blocks, axis=1).astype(np.float64)
    X -= X.mean(0)
    weight = np.linalg.lstsq(X.T @ X, X.T @ (y - y.mean()), rcond=1e-9)[0]
    return np.split(weight, np.cumsum([block.shape[1] for block in blocks])[:-1])


def merge_fronts(space: Space, gains: Sequence[Floats], parts: Sequence[Part], most: float = np.inf) -> Codes:
    """The Pareto front of architectures of cost `most` at most, cheapest (and worst) first; empty if nothing
    is that cheap.

    Args:
        gains: of `fit_additive`.
        parts: their costs sum up to that of the architecture; together they read every choice.
    """
    to_come = np.cumsum([0, *(part.cost.min() for part in reversed(parts))])[::-1]
    rows, score, cost = np.zeros((1, len(space.columns)), np.uint8), np.zeros(1), np.zeros(1)
    for i, ((columns, table), new) in enumerate(zip(parts, _first_read(parts), strict=True)):
        options, asleep = _options(space, new), _asleep(space, rows, new)[:, None]
        place = np.zeros((len(rows), len(options)), np.intp)
        for c, choices in zip(columns, table.shape, strict=False):
            place = (
                place * choices
                + np.maximum(options[:, new.index(c)] if c in new else rows[:, c, None], 1)
                - 1
            )
        costs = cost[:, None] + table.ravel()[place]
        possible = costs + to_come[i + 1] <= most
        possible[:, 1:] &= ~asleep  # a block that is not there has one option
        parent, option = np.nonzero(possible)
        score = (score[:, None] + np.where(asleep, 0.0, gains[i]))[parent, option]
        cost = costs[parent, option]
        chosen = np.where(asleep[parent], 0, options[option])
        group = np.zeros(len(parent), np.int64)
        for c in sorted(
            {c for part in parts[: i + 1] for c in part.columns}
            & {c for part in parts[i + 1 :] for c in part.columns}
        ):
            group = group * len(space.columns[c].values) + (
                chosen[:, new.index(c)] if c in new else rows[parent, c]
            )
        kept = _fronts(group, score, cost)
        rows, score, cost = rows[parent[kept]], score[kept], cost[kept]
        rows[:, new] = chosen[kept]
    return rows


def _first_read(parts: Sequence[Part]) -> list[list[int]]:
    """For each part the columns that none before it reads."""
    return [
        sorted(set(part.columns) - {c for before in parts[:i] for c in before.columns})
        for i, part in enumerate(parts)
    ]


def _options(space: Space, new: list[int]) -> Codes:
    """All combinations of codes of the columns `new`, in C order."""
    combinations = list(product(*(range(1, len(space.columns[c].values) + 1) for c in new)))
    return np.array(combinations, np.uint8).reshape(len(combinations), len(new))


def _asleep(space: Space, rows: Codes, new: list[int]) -> NDArray[np.bool_]:
    """(N,) whether the columns `new` are those of a block past the depth that the rows have chosen."""
    blocks = (
        [space.columns[c] for c in new if space.columns[c].field == "kernel"]
        if space.granularity == "block"
        else []
    )
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
    last = np.concatenate(
        [(np.diff(group[order]) > 0) | (np.diff(cost[order]) > 0), [True]]
    )  # of equally cheap ones, the best
    return order[last]
