"""The best architecture under constraints, and the nearest constraints that an architecture can keep."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes, mutate
from ofa.space.space import Space
from predictors.search.additive_optimum import QUICK, additive_limits, additive_optimum
from predictors.search.choice_pairs import improve_pairs
from predictors.search.constraints import NO_LIMIT, ArchCostFn, Constraint, ScoreFn
from predictors.search.decompose import at_known_resolutions, groups_of_layers, known_resolutions
from predictors.search.dynamic_programming import fit_additive, fit_additive_to
from predictors.search.evolution import OURS, evolve, global_columns, start_rows
from predictors.search.pool import Pool, scored, unseen

# Additive fits near the best. Without them 2 of 24 searches ended 0.02 points lower. Two near all parents,
# instead of three near the best, ended up to 0.012 points lower.
REFITS = 3
REFIT_PARENTS = 32
REFIT_SAMPLES = 1_500  # some times the terms of the fit, of which `ofa_mbv3` has 300
REFIT_MUTATION = 0.15  # of each choice; with 0.1 the result was the same


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

    An additive function is fitted to the score. Its exact optimum under all limits that are sums or maxima
    over layers, with good architectures of every resolution, is where an evolution starts. The fit is
    repeated near the best of the evolution. So the result is the optimum where the score is additive
    over the groups of layers, and no resolution is given up because another one was ahead early.

    Args:
        space: what to search.
        score: of encoded architectures, such as a predicted accuracy; higher is better.
        constraints: what every architecture has to keep; an empty list for no limit.
        rng: of the search.
        seeds: encoded architectures (N, F) to start from as well; the result is at least as good as these.
        additive: a function that grows with the score and is more nearly additive, such as a prediction on
            the scale on which the predictor learned; None: the score itself.

    Returns:
        Different architectures (M, F), best first; M is 0 if none was found that keeps the constraints.
    """
    additive = additive or score
    limits, groups = additive_limits(space, constraints), groups_of_layers(space)
    columns = global_columns(space)
    gains = fit_additive(space, additive, groups, rng)
    start = [start_rows(space, OURS.initial, rng), additive_optimum(space, gains, groups, limits).rows]
    if seeds is not None:
        start.append(seeds)
    half = OURS._replace(generations=OURS.generations // 2)
    # 1. The evolution finds the region.
    pool = evolve(space, score, constraints, rng, np.concatenate(start), half, columns)
    # 2. There the score is nearer to additive than over the whole space, so the optimum of a fit is better.
    for _ in range(REFITS):
        near = _mutants(space, pool, rng)
        gains = fit_additive_to(space, near, additive(near), groups)
        optimum = additive_optimum(space, gains, groups, limits, QUICK)
        fresh = unseen(optimum.rows, {row.tobytes() for row in pool.rows})
        pool = pool.join(scored(fresh, score, constraints)).spread(OURS.parents, columns)
    # 3. The children of an evolution differ from parents in random choices, so the last step to the optimum,
    # which trades one choice for another, is better tried exhaustively.
    pool = evolve(space, score, constraints, rng, pool.rows, half, columns)
    pool = improve_pairs(space, score, constraints, pool)
    return pool.rows[pool.over == 0]


def _mutants(space: Space, pool: Pool, rng: np.random.Generator) -> Codes:
    """Architectures near the best of the pool, for a fit that holds there."""
    best = pool.rows[:REFIT_PARENTS]
    parents = best[rng.integers(0, len(best), REFIT_SAMPLES)]
    return np.unique(mutate(space, parents, REFIT_MUTATION, rng), axis=0)


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
        cost, limits = constraint.cost, held
        is_known = known_resolutions(space, cost)
        if not is_known.all():
            # The search fits a sum to what it minimises, which has to be finite everywhere.
            cost = at_known_resolutions(space, cost, is_known)
            limits = [*held, constraint._replace(limit=NO_LIMIT)]
        cheapest = find_best(space, partial(_cheapness, cost), limits, rng, known)
        least = float(constraint.cost(cheapest[:1])[0])
        if least > constraint.limit:
            relaxed.append((constraint, least))
        # The least value was reached under the constraints before, so all of them can hold together.
        held.append(constraint._replace(limit=max(least, constraint.limit)))
    return relaxed


def _cheapness(cost: ArchCostFn, rows: Codes) -> Floats:
    return -np.asarray(cost(rows), np.float64)
