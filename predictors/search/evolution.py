"""Vectorised evolution of architectures towards a high score under constraints.

The score and the costs are any functions of encoded architectures; here the score is a predicted accuracy. An
architecture over a limit is never scored. Every loop has a bound.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, cross, encode, mutate, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint, ScoreFn
from predictors.search.pool import Pool, scored, unseen


class Evolution(NamedTuple):
    """Settings of an evolution.

    initial: uniform samples at the start.
    parents: how many of the best may be a parent.
    children: architectures of a generation, half of them mutated and half of them crossed.
    generations: how many generations follow the start.
    mutation: probability with which each choice is drawn anew.
    """

    initial: int
    parents: int
    children: int
    generations: int
    mutation: float


# 256 parents: 64 of them missed an optimum that these find (docs/log.md).
OURS = Evolution(initial=1_024, parents=256, children=1_024, generations=20, mutation=0.07)
# The settings of the paper, to compare with.
OFA = Evolution(initial=100, parents=25, children=100, generations=500, mutation=0.1)


def evolve(
    space: Space,
    score: ScoreFn,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    start: Codes,
    settings: Evolution = OURS,
    columns: Sequence[int] = (),
) -> Pool:
    """The evolution of OFA (2020, arXiv:1908.09791) on whole arrays.

    The best so far are parents; half of their children are mutated, the others are crossed. OFA draws
    children until enough are feasible. Here those over a limit are not scored, and are parents only while too
    few others are known, the nearest to feasible first. So a search that starts outside finds its way in, or
    ends with the nearest architectures that it saw.

    Args:
        space: what to search.
        score: of encoded architectures; higher is better.
        constraints: what an architecture has to keep; an empty list for no limit.
        rng: of the search.
        start: encoded architectures (N, F) of the first generation.
        settings: of the evolution.
        columns: columns whose choices keep a share of the parents each, such as `global_columns`; with none,
            the parents are the best.

    Returns:
        The `settings.parents` architectures that were the last parents, or about so many with `columns`.
    """
    # Nothing is scored twice: an accuracy predictor takes most of the time.
    seen = set[bytes]()
    pool = scored(unseen(start, seen), score, constraints).spread(settings.parents, columns)
    for _ in range(settings.generations):
        fresh = unseen(children(space, pool.rows, settings, rng), seen)
        pool = pool.join(scored(fresh, score, constraints)).spread(settings.parents, columns)
    return pool


def global_columns(space: Space) -> list[int]:
    """The columns of the resolution and of the widths, where there is a choice.

    Such a choice changes what many layers cost. Under a limit another resolution needs other choices almost
    everywhere, so no small change leads there, and the first resolution that gets ahead would take over.
    """
    found = []
    for i, column in enumerate(space.columns):
        if column.field in ("resolution", "width") and len(column.values) > 1:
            found.append(i)
    return found


def start_rows(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """The smallest and the largest architecture, and `count` uniform samples."""
    extremes = np.stack([encode(space, smallest(space)), encode(space, largest(space))])
    return np.concatenate([extremes, sample_codes(space, count, rng)])


def children(space: Space, parents: Codes, settings: Evolution, rng: np.random.Generator) -> Codes:
    """One generation: mutants of random parents, then crossings of the same parents with others."""
    first, second = parents[rng.integers(0, len(parents), (2, settings.children // 2))]
    return np.concatenate([mutate(space, first, settings.mutation, rng), cross(space, first, second, rng)])
