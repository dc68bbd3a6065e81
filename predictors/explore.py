"""Candidates under a budget by predicted accuracy: vectorised evolution, for one budget or for the whole front at once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.space import Codes, Space, cross, encode, largest, mutate, sample_codes, smallest

Scores = Callable[[Codes], NDArray[np.float64]]
Costs = Callable[[Codes], NDArray[np.int64]]
Ranked = tuple[Codes, NDArray[np.float64]]
SAMPLES = 100_000


class Evolution(NamedTuple):
    """Settings: the first population, who may be a parent, and children per generation (half mutated, half crossed)."""

    initial: int
    parents: int
    children: int
    generations: int
    mutation: float  # probability per choice

    @property
    def predictions(self) -> int:
        """At most this many architectures are scored."""
        return self.initial + self.generations * self.children


PER_BUDGET = Evolution(initial=4_096, parents=128, children=512, generations=20, mutation=0.1)
OFA = Evolution(initial=100, parents=25, children=100, generations=500, mutation=0.1)
FRONT = Evolution(initial=512, parents=100, children=256, generations=20, mutation=0.2)


def evolve(space: Space, score: Scores, macs: Costs, budget: int, rng: np.random.Generator, settings: Evolution = PER_BUDGET) -> Codes:
    """The best architectures with at most `budget` MACs, best predicted first, all different.

    The evolution of OFA (2020, arXiv:1908.09791) on whole arrays: the parents are the best so far, half of the children are mutated
    and half crossed. Settings `OFA` are the paper's. It draws children until enough are feasible; here infeasible ones are
    dropped before they are scored. The default has fewer, larger generations, which is faster and no worse (docs/log.md).
    The smallest architecture is always a candidate, so a feasible budget never comes back empty.
    """
    pool = _start(space, rng)
    fresh = pool[macs(pool) <= budget][: settings.initial]
    best = _best([(fresh, score(fresh))], settings.parents)
    for _ in range(settings.generations):
        children = _children(space, best[0], settings, rng)
        fresh = children[macs(children) <= budget]
        best = _best([best, (fresh, _score(fresh, score))], settings.parents)
    return best[0]


def evolve_front(
    space: Space, score: Scores, macs: Costs, budgets: tuple[int, ...], rng: np.random.Generator, settings: Evolution = FRONT
) -> Codes:
    """Everything one evolution scored, best predicted first, all different: for any budget, the first rows that fit are its candidates.

    The search of AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021, arXiv:2102.07954): the parents are the best in each bin
    of MACs. Their bins are 10M wide from 200M to 1,200M; here 100 go, each the same share wider than the one before, from the
    smallest architecture to the largest budget, and every budget ends a bin.
    """
    pool = _start(space, rng)
    least, most = macs(np.stack([pool[0], encode(space, largest(space))]))
    top = min(max(budgets), most)
    edges = np.union1d(np.geomspace(least, top, settings.parents + 1), budgets)
    fresh, seen = pool[macs(pool) <= top][: settings.initial], set[bytes]()
    scored: list[Ranked] = []
    best: Ranked = (pool[:0], np.empty(0))
    for _ in range(1 + settings.generations):
        fresh = _unseen(fresh, seen)
        scored.append((fresh, _score(fresh, score)))
        rows, scores = _join([best, scored[-1]])
        bins = np.digitize(macs(rows), edges, right=True)
        order = np.lexsort((-scores, bins))
        order = order[np.unique(bins[order], return_index=True)[1]]
        best = (rows[order], scores[order])
        children = _children(space, best[0], settings, rng)
        fresh = children[macs(children) <= top]
    rows, scores = _join(scored)
    return rows[np.argsort(-scores, kind="stable")]


def _start(space: Space, rng: np.random.Generator) -> Codes:
    """The smallest architecture and uniform samples."""
    return np.concatenate([encode(space, smallest(space))[None], sample_codes(space, SAMPLES, rng)])


def _children(space: Space, parents: Codes, settings: Evolution, rng: np.random.Generator) -> Codes:
    first, second = parents[rng.integers(0, len(parents), (2, settings.children // 2))]
    return np.concatenate([mutate(space, first, settings.mutation, rng), cross(space, first, second, rng)])


def _score(rows: Codes, score: Scores) -> NDArray[np.float64]:
    return score(rows) if len(rows) else np.empty(0)


def _unseen(rows: Codes, seen: set[bytes]) -> Codes:
    """The different ones of `rows` that are not in `seen`, which then holds them, too."""
    different = {row.tobytes(): i for i, row in enumerate(rows)}
    fresh = [i for key, i in different.items() if key not in seen]
    seen.update(different)
    return rows[fresh]


def _join(parts: list[Ranked]) -> Ranked:
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([scores for _, scores in parts])


def _best(parts: list[Ranked], count: int) -> Ranked:
    """The `count` best different rows, and their scores."""
    rows, scores = _join(parts)
    _, first = np.unique(rows, axis=0, return_index=True)
    order = first[np.argsort(-scores[first], kind="stable")][:count]
    return rows[order], scores[order]
