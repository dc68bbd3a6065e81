"""The best architecture under constraints, and the nearest constraints that an architecture can keep."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.additive_optimum import additive_limits, additive_optimum
from predictors.search.choice_pairs import improve_pairs
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn
from predictors.search.decompose import groups_of_layers
from predictors.search.dynamic_programming import fit_additive
from predictors.search.evolution import OURS, evolve, global_columns, start_rows


def find_best(
    space: Space,
    score: ScoreFn,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    seeds: Codes | None = None,
    additive: ScoreFn | None = None,
) -> Codes:
    """The best architectures under constraints.

        rows = find_best(space, score, [Constraint("macs", 600e6, macs)], np.random.default_rng(0))
        best = decode(space, rows[0])

    An additive function is fitted to the score. Its exact optimum under all limits that are sums or maxima over
    layers, and good architectures of every resolution, are where an evolution starts, and after it a search of
    pairs of choices. So the result is the optimum where the score is additive over the groups of layers.

    Args:
        space: what to search.
        score: of encoded architectures, such as a predicted accuracy; higher is better.
        constraints: what every architecture has to keep; an empty list for no limit.
        rng: of the search.
        seeds: encoded architectures (N, F) to start from as well; the result is at least as good as these.
        additive: a function that grows with the score and that is more nearly additive, such as a predictor on
            the scale on which it learned; None: the score itself.

    Returns:
        Different architectures (M, F), best first; M is 0 if none was found that keeps the constraints.
    """
    groups = groups_of_layers(space)
    gains = fit_additive(space, additive or score, groups, rng)
    optimum = additive_optimum(space, gains, groups, additive_limits(space, constraints))
    start = [start_rows(space, OURS.initial, rng), optimum.rows]
    if seeds is not None:
        start.append(seeds)
    # The evolution finds the region. Its children differ from parents in random choices, so the last step to
    # the optimum, which trades one choice for another, is better tried exhaustively.
    pool = evolve(space, score, constraints, rng, np.concatenate(start), OURS, global_columns(space))
    pool = improve_pairs(space, score, constraints, pool)
    return pool.rows[pool.over == 0]


def nearest_feasible(
    space: Space, constraints: Sequence[Constraint], rng: np.random.Generator, known: Codes
) -> list[tuple[Constraint, float]]:
    """The constraints that have to be relaxed, each with the least limit at which it can hold.

    Constraints are taken in their order: each limit is the least one beside those before it. It is found by
    minimising the cost of the constraint under the others, from the smallest architecture and those `known`.

    Returns:
        (constraint, least limit); an empty list if all constraints can hold together.
    """
    relaxed: list[tuple[Constraint, float]] = []
    held: list[Constraint] = []  # those before, relaxed where they had to be: some architecture keeps them
    for constraint in constraints:
        cheapest = find_best(space, partial(_cheapness, constraint.cost), held, rng, known)
        least = float(constraint.cost(cheapest[:1])[0])
        if least > constraint.limit:
            relaxed.append((constraint, least))
        # The least value was reached under the constraints before, so all of them can hold together.
        held.append(constraint._replace(limit=max(least, constraint.limit)))
    return relaxed


def _cheapness(cost: ArchCostFn, rows: Codes) -> Floats:
    return -np.asarray(cost(rows), np.float64)
