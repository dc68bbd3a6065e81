"""Architectures of the highest score under constraints, or on a whole front: vectorised evolution and a
search of pairs of choices.

The score is any function of encoded architectures, here a predicted accuracy; so are costs. Costs are cheap
and scores are not: whatever passes a limit is dropped before it is scored. Every loop has a bound.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, canonical, cross, encode, mutate, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint, Costs, Floats, Scores, excess
from predictors.search.dynamic_programming import Part, fit_additive, merge_fronts

STEPS = 4
CELLS = 256


class Evolution(NamedTuple):
    """Settings: uniform samples at the start, who may be a parent, and children per generation (half mutated,
    half crossed)."""

    initial: int
    parents: int
    children: int
    generations: int
    mutation: float  # probability per choice


OURS = Evolution(initial=1_024, parents=256, children=1_024, generations=20, mutation=0.07)
OFA = Evolution(initial=100, parents=25, children=100, generations=500, mutation=0.1)


class Pool(NamedTuple):
    """Different architectures: those under all limits by score, best first, then the others by how far they
    are over."""

    rows: Codes
    scores: Floats
    over: Floats


def search(
    space: Space,
    score: Scores,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    seeds: Codes | None = None,
) -> Codes:
    """The best architectures found under all constraints, best first, all different; none if none was found.

    An evolution that starts from `seeds` (those of `additive_fronts` make it fast and the result as good as
    theirs), then pairs.
    """
    start = (
        _start(space, OURS.initial, rng)
        if seeds is None
        else np.concatenate([_start(space, OURS.initial, rng), seeds])
    )
    pool = improve_pairs(space, score, constraints, evolve(space, score, constraints, rng, start))
    return pool.rows[pool.over == 0]


def additive_fronts(
    space: Space, score: Scores, costs: Sequence[Sequence[Part]], rng: np.random.Generator
) -> Codes:
    """The front of `score` against each of `costs`: exact if the score is additive, otherwise that of the
    additive score nearest to it."""
    gains = fit_additive(space, score, costs[0], rng)
    return np.unique(np.concatenate([merge_fronts(space, gains, parts) for parts in costs]), axis=0)


def evolve(
    space: Space,
    score: Scores,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    start: Codes,
    settings: Evolution = OURS,
) -> Pool:
    """The evolution of OFA (2020, arXiv:1908.09791) on whole arrays: the best so far are parents, half of
    their children are mutated.

    OFA draws children until enough are feasible. Here those over a limit are not scored, and are parents only
    while too few others are known, the nearest to feasible first: so a search that starts outside finds its
    way in, or ends with the nearest it saw.
    """
    seen = set[bytes]()
    pool = _best(_judge(_unseen(start, seen), score, constraints), settings.parents)
    for _ in range(settings.generations):
        fresh = _unseen(_children(space, pool.rows, settings, rng), seen)
        pool = _best(_join(pool, _judge(fresh, score, constraints)), settings.parents)
    return pool


def improve_pairs(
    space: Space, score: Scores, constraints: Sequence[Constraint], pool: Pool, steps: int = STEPS
) -> Pool:
    """The pool and what changing any two choices at once leads to: at each step, of the best whose pairs were
    not tried yet.

    Under a limit the best spends all of it: to gain in one choice it must save in another.
    """
    columns = np.concatenate([[i] * n for i, n in enumerate(space.cardinalities)])
    codes = np.concatenate([np.arange(1, n + 1) for n in space.cardinalities])
    first, second = np.triu_indices(len(codes))
    seen, tried = {row.tobytes() for row in pool.rows}, set[bytes]()
    for _ in range(steps):
        best = next((row for row in pool.rows if row.tobytes() not in tried), None)
        if best is None:
            break
        tried.add(best.tobytes())
        near = np.repeat(best[None], len(first), axis=0)
        for change in (first, second):
            near[np.arange(len(first)), columns[change]] = codes[change]
        pool = _best(
            _join(pool, _judge(_unseen(canonical(space, near), seen), score, constraints)), len(pool.rows)
        )
    return pool


def search_front(
    space: Space,
    score: Scores,
    costs: Sequence[Costs],
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    seeds: Codes,
    settings: Evolution = OURS,
) -> Codes:
    """Architectures under all constraints that nothing found beats in score and in all of `costs`; in no
    order.

    The search of AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021, arXiv:2102.07954), for any costs:
    the parents are the best in each cell of a grid. Their cells are 10M MACs wide; here about 256 go, each
    the same share wider than the one before.
    """
    seen = set[bytes]()
    start = np.concatenate([_start(space, settings.initial, rng), seeds])
    everything = parents = _judge(_unseen(start, seen), score, constraints)
    for _ in range(settings.generations):
        parents = _best_of_cells(parents, costs)
        fresh = _judge(_unseen(_children(space, parents.rows, settings, rng), seen), score, constraints)
        everything, parents = _join(everything, fresh), _join(parents, fresh)
    inside = _take(everything, everything.over == 0)
    return inside.rows[undominated(inside.scores, np.stack([cost(inside.rows) for cost in costs], axis=1))]


def undominated(scores_N: Floats, costs_NK: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) whether no other has at least the score at no higher costs; of equals, the first one."""
    kept = np.zeros(len(scores_N), np.bool_)
    front, size = np.empty_like(costs_NK), 0
    for i in np.lexsort((*costs_NK.T, -scores_N)):
        kept[i] = not (front[:size] <= costs_NK[i]).all(axis=1).any()
        if kept[i]:
            front[size] = costs_NK[i]
            size += 1
    return kept


def widest_gains(
    scores_N: Floats, costs_NK: NDArray[Any], known_scores: Floats, known_costs: NDArray[Any], count: int
) -> list[int]:
    """Which `count` rows should raise a known front most: by turns the one of the largest gain in score times
    distance in cost.

    The gain is over the best known at no higher costs; the distance, in logarithms, from the front and from
    what is chosen already.
    """
    floor = np.full(len(scores_N), known_scores.min())
    for score, cost in zip(known_scores, known_costs, strict=True):
        floor = np.where((cost <= costs_NK).all(axis=1), np.maximum(floor, score), floor)
    front = np.log(known_costs[undominated(known_scores, known_costs)])
    distance = np.abs(np.log(costs_NK)[:, None] - front).max(axis=2).min(axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(scores_N))):
        worth = np.maximum(scores_N - floor, 1e-9) * (distance + 1e-9)
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        floor = np.where(
            (costs_NK[chosen[-1]] <= costs_NK).all(axis=1), np.maximum(floor, scores_N[chosen[-1]]), floor
        )
        distance = np.minimum(distance, np.abs(np.log(costs_NK) - np.log(costs_NK[chosen[-1]])).max(axis=1))
    return chosen


def nearest_feasible(
    space: Space, constraints: Sequence[Constraint], rng: np.random.Generator, known: Codes
) -> list[tuple[Constraint, float]]:
    """The constraints that have to be relaxed, each with the least limit at which it can hold beside those
    before it; none: all can hold.

    What cannot be met is found by minimising its cost under the others, from the smallest architecture and
    those `known`.
    """
    relaxed: list[tuple[Constraint, float]] = []
    held: list[Constraint] = []
    for constraint in constraints:
        found = search(space, partial(_thrift, constraint.cost), held, rng, known)
        least = float(constraint.cost(found[:1])[0])
        if least > constraint.limit:
            relaxed.append((constraint, least))
        held.append(constraint._replace(limit=max(least, constraint.limit)))
    return relaxed


def _thrift(cost: Costs, rows: Codes) -> Floats:
    return -np.asarray(cost(rows), np.float64)


def _start(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """The smallest and the largest architecture, and uniform samples."""
    return np.concatenate(
        [encode(space, f(space))[None] for f in (smallest, largest)] + [sample_codes(space, count, rng)]
    )


def _children(space: Space, parents: Codes, settings: Evolution, rng: np.random.Generator) -> Codes:
    first, second = parents[rng.integers(0, len(parents), (2, settings.children // 2))]
    return np.concatenate([mutate(space, first, settings.mutation, rng), cross(space, first, second, rng)])


def _unseen(rows: Codes, seen: set[bytes]) -> Codes:
    """The different ones of `rows` that are not in `seen`, which then holds them, too."""
    different = {row.tobytes(): i for i, row in enumerate(rows)}
    fresh = [i for key, i in different.items() if key not in seen]
    seen.update(different)
    return rows[fresh]


def _judge(rows: Codes, score: Scores, constraints: Sequence[Constraint]) -> Pool:
    over = excess(constraints, rows)
    scores, inside = np.full(len(rows), -np.inf), over == 0
    if inside.any():
        scores[inside] = score(rows[inside])
    return Pool(rows, scores, over)


def _join(one: Pool, other: Pool) -> Pool:
    return Pool(*(np.concatenate([a, b]) for a, b in zip(one, other, strict=True)))


def _take(pool: Pool, which: NDArray[Any]) -> Pool:
    return Pool(*(part[which] for part in pool))


def _best(pool: Pool, count: int) -> Pool:
    return _take(pool, np.lexsort((-pool.scores, pool.over))[:count])


def _best_of_cells(pool: Pool, costs: Sequence[Costs]) -> Pool:
    """The best in each cell of a grid over the logarithms of costs."""
    cells = np.zeros(len(pool.rows), np.int64)
    each = round(CELLS ** (1 / len(costs)))
    for cost in costs:
        level = np.log(cost(pool.rows))
        cells = cells * each + np.minimum(
            each * (level - level.min()) / max(np.ptp(level), 1e-12), each - 1
        ).astype(np.int64)
    order = np.lexsort((-pool.scores, pool.over, cells))
    return _take(pool, order[np.unique(cells[order], return_index=True)[1]])
