"""The searches of OFA, AlphaNet and AttentiveNAS, written anew from what their papers and released code do.

OFA (2020, arXiv:1908.09791): a population of 100, of which the best 25 are parents; half of the children are
mutants (each choice is drawn anew with probability 0.1), half are crossed; 500 generations.

AlphaNet (2021, arXiv:2102.07954) and AttentiveNAS (2021, arXiv:2011.09011), whose README names the code of
AlphaNet as its search: 512 random architectures and the smallest, then 20 generations of 128 mutants
(probability 0.2) and 128 crossed ones. Parents are the best of each cell of 10M MACs between two limits.

All draw every architecture until it keeps the limits, and score nothing else.
"""

from collections.abc import Callable, Sequence

import numpy as np

from engine.statistics import Floats
from ofa.space.arch import smallest
from ofa.space.codes import Codes, cross, encode, mutate, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn, fits

DrawFn = Callable[[int], Codes]  # how many architectures are wanted -> as many rows
TRIES = 50  # draws for what is wanted; where a limit leaves hardly anything, fewer are found


def ofa_search(
    space: Space, score: ScoreFn, constraints: Sequence[Constraint], rng: np.random.Generator
) -> float:
    """The score that OFA's evolution reaches."""
    rows = _start(space, constraints, 100, rng)
    scores = score(rows)
    for _ in range(500):
        best = np.argsort(-scores, kind="stable")[:25]
        parents, parent_scores = rows[best], scores[best]
        rows = np.concatenate([parents, _children(space, constraints, parents, 50, 0.1, rng)])
        scores = np.concatenate([parent_scores, score(rows[len(parents) :])])
    return float(scores.max())


def alphanet_search(
    space: Space,
    score: ScoreFn,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    macs: ArchCostFn,
    least_macs: float = 0.0,
    generations: int = 20,
) -> float:
    """The score that the evolution of AlphaNet and AttentiveNAS reaches.

    Args:
        space, score, constraints, rng: as of `find_best`.
        macs: of encoded architectures.
        least_macs: the lower limit of the range; parents and children are above it, except for the first.
        generations: how many.
    """

    # The range is one more limit: that of MACs from below.
    def below(rows: Codes) -> Floats:
        return 2 - np.minimum(macs(rows) / max(least_macs, 1), 1.0)

    limits = [*constraints, Constraint("macs", 1.0, below)]
    rows = _start(space, limits, 512, rng)
    scores, cells = score(rows), np.round(macs(rows) / 10e6)
    for _ in range(generations):
        # Of each cell the best stays, that of all generations.
        order = np.lexsort((-scores, cells))
        _, first = np.unique(cells[order], return_index=True)
        best = order[first]
        fresh = _children(space, limits, rows[best], 128, 0.2, rng)
        rows = np.concatenate([rows[best], fresh])
        scores = np.concatenate([scores[best], score(fresh)])
        cells = np.round(macs(rows) / 10e6)
    return float(scores[fits(constraints, rows)].max())


def _start(space: Space, constraints: Sequence[Constraint], count: int, rng: np.random.Generator) -> Codes:
    """The smallest architecture, and random ones that keep the limits."""

    def draw(count: int) -> Codes:
        return sample_codes(space, count, rng)

    return np.concatenate([encode(space, smallest(space))[None], _feasible(draw, constraints, count)])


def _children(
    space: Space,
    constraints: Sequence[Constraint],
    parents: Codes,
    count: int,
    mutation: float,
    rng: np.random.Generator,
) -> Codes:
    """`count` mutants and as many crossed architectures of random parents."""

    def mutants(count: int) -> Codes:
        return mutate(space, parents[rng.integers(0, len(parents), count)], mutation, rng)

    def crossed(count: int) -> Codes:
        first, second = parents[rng.integers(0, len(parents), (2, count))]
        return cross(space, first, second, rng)

    return np.concatenate([_feasible(mutants, constraints, count), _feasible(crossed, constraints, count)])


def _feasible(draw: DrawFn, constraints: Sequence[Constraint], count: int) -> Codes:
    """Draw until `count` architectures keep the limits."""
    found = draw(0)
    for _ in range(TRIES):
        rows = draw(2 * count)
        found = np.concatenate([found, rows[fits(constraints, rows)]])
        if len(found) >= count:
            break
    return found[:count]
