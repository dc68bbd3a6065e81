"""A whole front of score against costs under constraints, and which of its architectures to measure first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats, pareto_front
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn
from predictors.search.evolution import OURS, Evolution, children, start_rows
from predictors.search.pool import Pool, scored, unseen

CELLS = 256  # of the whole grid of costs, over all its axes
LEAST_GAIN = 1e-9  # keeps the order by distance where no score is above the known front


def find_front(
    space: Space,
    score: ScoreFn,
    costs: Sequence[ArchCostFn],
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    seeds: Codes,
    settings: Evolution = OURS,
) -> Codes:
    """Architectures (M, F) under all constraints that nothing found beats in score and in all of `costs`.

    The search of AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021, arXiv:2102.07954), for any costs:
    the parents are the best in each cell of a grid of costs. Their cells are 10M MACs wide. Here they are
    about 256 in number, each of them the same share wider than the one before.

    Args:
        space: what to search.
        score: of encoded architectures, such as a predicted accuracy; higher is better.
        costs: at least one; a front of score against all of them is found.
        constraints: what every architecture has to keep; an empty list for no limit.
        rng: of the search.
        seeds: encoded architectures (N, F) to start from, beside random ones.
        settings: of the evolution.

    Returns:
        Architectures in the order in which they were found.
    """
    seen = set[bytes]()
    start = np.concatenate([start_rows(space, settings.initial, rng), seeds])
    everything = parents = scored(unseen(start, seen), score, constraints)
    for _ in range(settings.generations):
        parents = _best_of_cells(parents, costs)
        fresh_rows = unseen(children(space, parents.rows, settings, rng), seen)
        fresh = scored(fresh_rows, score, constraints)
        # A child competes with the parents of its cell in the next generation.
        everything, parents = everything.join(fresh), parents.join(fresh)
    # From everything that was scored: parents are the best of their cells only.
    inside = everything.take(everything.over == 0)
    costs_NK = np.stack([cost(inside.rows) for cost in costs], axis=1)
    return inside.rows[np.sort(pareto_front(inside.scores, costs_NK))]


def widest_gains(
    scores_N: Floats, costs_NK: NDArray[Any], known_scores: Floats, known_costs: NDArray[Any], count: int
) -> list[int]:
    """Which `count` of N architectures should raise a known front most.

    They are selected by turns: the one of the largest gain in score times distance in cost. The gain is over
    the best score known at no higher costs. The distance, in logarithms of costs, is from the front and from
    what is selected already, so that measurements are spread along the front.

    Args:
        scores_N: predicted scores.
        costs_NK: K kinds of cost, all positive.
        known_scores: of the M architectures that are known.
        known_costs: their costs (M, K).
        count: how many to select.

    Returns:
        Indices into the N architectures; fewer than `count` if there are fewer architectures.
    """
    floor = np.full(len(scores_N), known_scores.min())
    for score, cost in zip(known_scores, known_costs, strict=True):
        floor = _raised(floor, costs_NK, score, cost)
    # By gain alone, all that are selected would lie next to each other (docs/log.md).
    log_costs = np.log(costs_NK)
    log_front = np.log(known_costs[pareto_front(known_scores, known_costs)])
    distance = np.abs(log_costs[:, None] - log_front).max(axis=2).min(axis=1)
    selected: list[int] = []
    for _ in range(min(count, len(scores_N))):
        worth = np.maximum(scores_N - floor, LEAST_GAIN) * (distance + LEAST_GAIN)
        worth[selected] = -1  # below all others, which have at least LEAST_GAIN squared
        best = int(worth.argmax())
        selected.append(best)
        floor = _raised(floor, costs_NK, scores_N[best], costs_NK[best])
        distance = np.minimum(distance, np.abs(log_costs - log_costs[best]).max(axis=1))
    return selected


def _raised(floor: Floats, costs_NK: NDArray[Any], score: float, cost_K: NDArray[Any]) -> Floats:
    """The best known scores at no higher costs, (N,), once one more architecture is known."""
    is_cheaper = (cost_K <= costs_NK).all(axis=1)
    return np.where(is_cheaper, np.maximum(floor, score), floor)


def _best_of_cells(pool: Pool, costs: Sequence[ArchCostFn]) -> Pool:
    """The best architecture in each cell of a grid over the logarithms of costs."""
    cells = np.zeros(len(pool.rows), np.int64)
    # With more costs each axis gets fewer levels, so the number of parents stays the same.
    each = round(CELLS ** (1 / len(costs)))
    for cost in costs:
        level = np.log(cost(pool.rows))
        # A cost that is not known is infinite, and keeps no limit: it may stand in the dearest cell.
        known = level[np.isfinite(level)]
        level = np.minimum(level, known.max()) if len(known) else np.zeros(len(level))
        share = each * (level - level.min()) / max(np.ptp(level), 1e-12)
        cells = cells * each + np.minimum(share, each - 1).astype(np.int64)
    # By cell, and within a cell the best one first: np.unique returns the first of each. Where no
    # architecture of a cell keeps the limits, the one nearest to them stands for it.
    order = np.lexsort((-pool.scores, pool.over, cells))
    _, first_of_cell = np.unique(cells[order], return_index=True)
    return pool.take(order[first_of_cell])
