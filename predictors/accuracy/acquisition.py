"""Which subnets to measure next: where the Pareto front of accuracy against MACs is expected to rise most.

Expected hypervolume improvement (Emmerich et al., Single- and multiobjective evolutionary optimization
assisted by Gaussian random field metamodels, 2006). MACs are known exactly, so it is a sum over the steps of
the front: the expected improvement over the step, times the width of the step. Widths are of log MACs, so a
tenth off a small subnet counts like a tenth off a large one.

The subnets of a batch are selected one by one. Each is believed to be as good as predicted before the next
one is selected (Ginsbourger et al., Kriging is well-suited to parallelize optimization, 2010).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from engine.statistics import Floats, pareto_front
from ofa.space.arch import largest
from ofa.space.codes import Codes, cross, encode, mutate, sample_codes
from ofa.space.space import Space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.search.constraints import ArchCostFn

# The evolution that looks for the highest gain.
SAMPLES = 1_000  # uniform samples at its start
KEPT = 400  # the best so far, which are returned in the end
PARENTS = 100  # the best of those, which have children
CHILDREN = 200  # in each generation, half of them mutated and half of them crossed
GENERATIONS = 15
MUTATION = 0.1  # probability with which each choice is drawn anew


def propose(
    space: Space,
    macs: ArchCostFn,
    known_NF: Codes,
    y: Floats,
    count: int,
    seed: int,
    rng: np.random.Generator,
) -> Codes:
    """At most `count` new architectures to measure, the one of the highest expected gain first.

    Args:
        space: of the architectures.
        macs: multiply-accumulates of encoded architectures.
        known_NF: encoded architectures that were measured.
        y: their accuracies (N,), in [0, 1].
        count: how many to propose.
        seed: of the predictor.
        rng: of the search.

    Returns:
        Encoded architectures (M, F); fewer than `count` if the space has no more.
    """
    X, log_macs = features(space, known_NF), np.log(macs(known_NF))
    end = float(np.log(macs(encode(space, largest(space))[None]))[0])
    model = GaussianProcess().fit(X, y, seed)

    def gain(rows: Codes) -> Floats:
        # Over what is predicted of the known subnets, not over what was measured: noise makes the best
        # measurements too high, and little would seem to be left to gain.
        front = front_steps(log_macs, model.mean(X), end)
        mean, std = model.predict(features(space, rows))
        return expected_gain(np.log(macs(rows)), mean, std, front)

    rows = _search(space, gain, known_NF, rng)
    selected: list[Codes] = []
    for _ in range(min(count, len(rows))):
        best = int(np.argmax(gain(rows)))
        selected.append(rows[best])
        new_row = rows[best : best + 1]
        new_X = features(space, new_row)
        # The subnet is believed to be as good as predicted: `gain` sees the longer arrays from here on.
        X = np.concatenate([X, new_X])
        y = np.append(y, model.mean(new_X))
        log_macs = np.append(log_macs, np.log(macs(new_row)))
        model.update(X, y)
        rows = np.delete(rows, best, axis=0)
    return np.array(selected, np.uint8).reshape(-1, known_NF.shape[1])


class FrontSteps(NamedTuple):
    """A front as S steps, (S,) each: from `start` to `stop` (log MACs) the best known accuracy is `level`."""

    start: Floats
    stop: Floats
    level: Floats


def front_steps(log_macs: Floats, accuracy: Floats, end: float) -> FrontSteps:
    """The front of subnets as steps; the last step ends at `end`.

    Args:
        log_macs: logarithms of their MACs (N,).
        accuracy: their accuracies (N,), in [0, 1].
        end: log MACs of the largest subnet of the space.
    """
    front = pareto_front(accuracy, log_macs[:, None])
    start = log_macs[front]
    return FrontSteps(start, np.append(start[1:], end), accuracy[front])


def expected_gain(log_macs_N: Floats, mean_N: Floats, std_N: Floats, known: FrontSteps) -> Floats:
    """Expected hypervolume improvement by one more subnet, for each of N subnets.

    Below the smallest known subnet nothing is gained.

    Args:
        log_macs_N: logarithms of their MACs.
        mean_N: their predicted accuracies.
        std_N: standard deviations of the predictions, all positive.
        known: the front so far.

    Returns:
        (N,) in accuracy times log MACs.
    """
    # A subnet can improve the part of a step that is at its own size or above.
    width_NS = np.maximum(0, known.stop - np.maximum(known.start, log_macs_N[:, None]))
    z_NS = (mean_N[:, None] - known.level) / std_N[:, None]
    # The expected improvement over a level, by the formula for a normal distribution.
    improvement_NS = std_N[:, None] * (z_NS * norm.cdf(z_NS) + norm.pdf(z_NS))
    return (width_NS * improvement_NS).sum(axis=1)


def hypervolume(log_macs: Floats, accuracy: Floats, end: float) -> float:
    """Area under the front from its smallest subnet to `end`, in accuracy times log MACs."""
    steps = front_steps(log_macs, accuracy, end)
    return float((steps.level * (steps.stop - steps.start)).sum())


def _search(
    space: Space, gain: Callable[[Codes], Floats], known_NF: Codes, rng: np.random.Generator
) -> Codes:
    """Unmeasured architectures of the highest gain that a short evolution finds, best first."""
    seen = {row.tobytes() for row in known_NF}
    samples = sample_codes(space, SAMPLES, rng)
    # Also near the known subnets, since the best of them make the front.
    mutants = [mutate(space, known_NF, MUTATION, rng) for _ in range(3)]
    candidates = np.concatenate([samples, *mutants])
    rows, gains = known_NF[:0], np.empty(0)
    for _ in range(1 + GENERATIONS):
        fresh: dict[bytes, Codes] = {}
        for row in candidates:
            if row.tobytes() not in seen:
                fresh[row.tobytes()] = row
        seen.update(fresh)
        if fresh:
            fresh_rows = np.stack(list(fresh.values()))
            rows = np.concatenate([rows, fresh_rows])
            gains = np.concatenate([gains, gain(fresh_rows)])
            best = np.argsort(-gains, kind="stable")[:KEPT]
            rows, gains = rows[best], gains[best]
        if not len(rows):
            break  # everything in the space is known
        first, second = rows[rng.integers(0, min(PARENTS, len(rows)), (2, CHILDREN // 2))]
        candidates = np.concatenate([mutate(space, first, MUTATION, rng), cross(space, first, second, rng)])
    return rows
