"""Which subnets to measure next: where the Pareto front of accuracy against MACs is expected to rise most.

Expected hypervolume improvement (Emmerich et al., Single- and multiobjective evolutionary optimization
assisted by Gaussian random field metamodels, 2006). MACs are known exactly, so it is a sum of the expected
improvements over each step of the front, each times the width of the step; widths are of log MACs, so a tenth
off a small subnet counts like a tenth off a large one. A batch is chosen one by one, each believed to be as
good as predicted before the next (Ginsbourger et al., Kriging is well-suited to parallelize optimization,
2010).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from ofa.space.arch import largest
from ofa.space.codes import Codes, cross, encode, mutate, sample_codes
from ofa.space.space import Space
from predictors.accuracy.features import features
from predictors.accuracy.models import Floats, GaussianProcess
from predictors.search.constraints import Costs

SAMPLES, KEPT, PARENTS, CHILDREN, GENERATIONS, MUTATION = 1_000, 400, 100, 200, 15, 0.1


def propose(
    space: Space, macs: Costs, known_NF: Codes, y: Floats, count: int, seed: int, rng: np.random.Generator
) -> Codes:
    """At most `count` new architectures to measure, the most promising first; fewer if the space has no more.

    Args:
        known_NF: what was measured, with accuracies `y`.
        seed: of the predictor.
    """
    X, size = features(space, known_NF), np.log(macs(known_NF))
    end = float(np.log(macs(encode(space, largest(space))[None]))[0])
    model = GaussianProcess().fit(X, y, seed)

    def gain(rows: Codes) -> Floats:
        mean, std = model.predict(features(space, rows))
        return expected_gain(np.log(macs(rows)), mean, std, front(size, model.mean(X), end))

    rows = _search(space, gain, known_NF, rng)
    chosen: list[Codes] = []
    for _ in range(min(count, len(rows))):
        best = int(np.argmax(gain(rows)))
        chosen.append(rows[best])
        new = features(space, rows[best : best + 1])
        X, y, size = (
            np.concatenate([X, new]),
            np.append(y, model.mean(new)),
            np.append(size, np.log(macs(rows[best : best + 1]))),
        )
        model.update(X, y)
        rows = np.delete(rows, best, axis=0)
    return np.array(chosen, np.uint8).reshape(-1, known_NF.shape[1])


class Front(NamedTuple):
    """Steps: from `start` (log MACs) to `stop` the best known accuracy is `level`. (S,) each."""

    start: Floats
    stop: Floats
    level: Floats


def front(size: Floats, accuracy: Floats, end: float) -> Front:
    """The front of subnets of these sizes (log MACs); its last step ends at `end`."""
    order = np.lexsort((-accuracy, size))
    rises = np.concatenate([[True], accuracy[order][1:] > np.maximum.accumulate(accuracy[order])[:-1]])
    start, level = size[order][rises], accuracy[order][rises]
    return Front(start, np.append(start[1:], end), level)


def expected_gain(size_N: Floats, mean_N: Floats, std_N: Floats, known: Front) -> Floats:
    """Expected hypervolume improvement, in accuracy times log MACs, of one more subnet: (N,).

    Below the smallest known subnet nothing is gained.
    """
    width_NS = np.maximum(0, known.stop - np.maximum(known.start, size_N[:, None]))
    z_NS = (mean_N[:, None] - known.level) / std_N[:, None]
    improvement_NS = std_N[:, None] * (z_NS * norm.cdf(z_NS) + norm.pdf(z_NS))
    return (width_NS * improvement_NS).sum(axis=1)


def hypervolume(size: Floats, accuracy: Floats, end: float) -> float:
    """Area under the front, in accuracy times log MACs."""
    known = front(size, accuracy, end)
    return float((known.level * (known.stop - known.start)).sum())


def _search(
    space: Space, gain: Callable[[Codes], Floats], known_NF: Codes, rng: np.random.Generator
) -> Codes:
    """Unmeasured architectures of the highest gain that a short evolution finds."""
    known = {row.tobytes() for row in known_NF}
    fresh = np.concatenate(
        [sample_codes(space, SAMPLES, rng), *(mutate(space, known_NF, MUTATION, rng) for _ in range(3))]
    )
    rows, gains = known_NF[:0], np.empty(0)
    for _ in range(1 + GENERATIONS):
        different = {row.tobytes(): row for row in fresh if row.tobytes() not in known}
        known.update(different)
        if different:
            fresh = np.stack(list(different.values()))
            rows, gains = np.concatenate([rows, fresh]), np.concatenate([gains, gain(fresh)])
            best = np.argsort(-gains, kind="stable")[:KEPT]
            rows, gains = rows[best], gains[best]
        if not len(rows):
            break
        first, second = rows[rng.integers(0, min(PARENTS, len(rows)), (2, CHILDREN // 2))]
        fresh = np.concatenate([mutate(space, first, MUTATION, rng), cross(space, first, second, rng)])
    return rows
