"""A whole front of score against costs under constraints, and which of its architectures to measure first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats, pareto_front
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.additive_optimum import additive_limits, additive_optimum
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn
from predictors.search.decompose import decompose, groups_of_layers
from predictors.search.dynamic_programming import fit_additive, merge_fronts
from predictors.search.evolution import OURS, Evolution, children, global_columns, start_rows
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
    additive: ScoreFn | None = None,
) -> Codes:
    """Architectures (M, F) under all constraints that nothing found beats in score and in all of `costs`.

    The search of AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021, arXiv:2102.07954), for any costs:
    the parents are the best in each cell of a grid of costs. Their cells are 10M MACs wide. Here they are
    about 256 in number, each of them the same share wider than the one before. As many more parents are the
    best of wider cells for each resolution and each width, so none of these is given up because another one
    was ahead early. The search starts from the exact fronts of an additive function that is fitted to the
    score, against each cost that is a sum over layers.

    Args:
        space: what to search.
        score: of encoded architectures, such as a predicted accuracy; higher is better.
        costs: at least one; a front of score against all of them is found.
        constraints: what every architecture has to keep; an empty list for no limit.
        rng: of the search.
        seeds: encoded architectures (N, F) to start from, beside others.
        settings: of the evolution.
        additive: a function that grows with the score and is more nearly additive; None: the score itself.

    Returns:
        Architectures in the order in which they were found.
    """
    seen, columns = set[bytes](), global_columns(space)
    gains = fit_additive(space, additive or score, groups_of_layers(space), rng)
    start = [
        start_rows(space, settings.initial, rng),
        seeds,
        *_additive_seeds(space, gains, costs, constraints),
    ]
    everything = parents = scored(unseen(np.concatenate(start), seen), score, constraints)
    for _ in range(settings.generations):
        parents = _best_of_cells(parents, costs, columns)
        fresh_rows = unseen(children(space, parents.rows, settings, rng), seen)
        fresh = scored(fresh_rows, score, constraints)
        # A child competes with the parents of its cell in the next generation.
        everything, parents = everything.join(fresh), parents.join(fresh)
    # From everything that was scored: parents are the best of their cells only.
    inside = everything.take(everything.over == 0)
    costs_NK = np.stack([cost(inside.rows) for cost in costs], axis=1)
    return inside.rows[np.sort(pareto_front(inside.scores, costs_NK))]


def _additive_seeds(
    space: Space, gains: list[Floats], costs: Sequence[ArchCostFn], constraints: Sequence[Constraint]
) -> list[Codes]:
    """The exact fronts of an additive score against each cost, and good architectures under the limits."""
    seeds = [
        additive_optimum(space, gains, groups_of_layers(space), additive_limits(space, constraints)).rows
    ]
    for cost in costs:
        found = decompose(space, cost)
        if found and not found.is_maximum:
            seeds.append(merge_fronts(space, gains, found.parts))
    return seeds


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


def _best_of_cells(pool: Pool, costs: Sequence[ArchCostFn], columns: Sequence[int]) -> Pool:
    """The best architecture in each cell of a grid over the logarithms of costs.

    And for every choice of `columns` the best with this choice, in each cell of a coarser grid.
    """
    logs = []
    for cost in costs:
        level = np.log(cost(pool.rows))
        # A latency is infinite at a resolution that its table does not cover: such are not within the limits.
        logs.append(np.where(np.isfinite(level), level, level[np.isfinite(level)].max(initial=0.0)))
    kept = [_first_of_cells(pool, _cells(logs, CELLS))]
    choices = sum(len(np.unique(pool.rows[:, c])) for c in columns)
    for c in columns:
        coarse = _cells(logs, max(CELLS // choices, 1))
        kept.append(_first_of_cells(pool, coarse * (int(pool.rows[:, c].max()) + 1) + pool.rows[:, c]))
    return pool.take(np.unique(np.concatenate(kept)))


def _cells(logs: Sequence[Floats], count: int) -> NDArray[np.int64]:
    """(N,) the cells of a grid of about `count` cells; `logs` are the coordinates, (N,) for each axis."""
    cells = np.zeros(len(logs[0]), np.int64)
    # With more costs each axis gets fewer levels, so the number of parents stays the same.
    each = round(count ** (1 / len(logs)))
    for level in logs:
        share = each * (level - level.min()) / max(np.ptp(level), 1e-12)
        cells = cells * each + np.minimum(share, each - 1).astype(np.int64)
    return cells


def _first_of_cells(pool: Pool, cells: NDArray[np.int64]) -> NDArray[np.intp]:
    """The index of the best architecture of each cell."""
    # By cell, and within a cell the best one first: np.unique returns the first of each. Where no
    # architecture of a cell keeps the limits, the one nearest to them stands for it.
    order = np.lexsort((-pool.scores, pool.over, cells))
    _, first = np.unique(cells[order], return_index=True)
    return order[first]
