"""Verify the latency of selected subnets by timing them, where the table is of this machine."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes
from predictors.search.constraints import ArchCostFn, Constraint, Objective, format_cost
from predictors.selection.exploration import Explored
from predictors.selection.posterior import Estimate, choose, under

TRIES = 3  # how often a subnet over the limit makes way for the next best one

# The subnets (F,) that a selection under some constraints would rest on, best first.
ContendersFn = Callable[[Sequence[Constraint]], Sequence[Codes]]
CanBeKeptFn = Callable[[Sequence[Constraint]], bool]  # whether any subnet keeps these limits by prediction
TimeFn = Callable[[Codes], float]  # an encoded architecture (F,) -> milliseconds on this machine


class Stopwatch:
    """Times encoded architectures, each once.

    time: takes the milliseconds of one.
    """

    def __init__(self, time: TimeFn) -> None:
        self._time = time
        self._known: dict[bytes, float] = {}

    def time(self, row: Codes) -> float:
        """Milliseconds of an encoded architecture (F,)."""
        key = row.tobytes()
        if key not in self._known:
            self._known[key] = self._time(row)
        return self._known[key]

    def known(self, codes_NF: Codes) -> Floats:
        """(N,) the milliseconds of those that were timed; infinite for the others."""
        return np.array([self._known.get(row.tobytes(), np.inf) for row in codes_NF])


def keep_timed_limits(
    explored: Sequence[Explored],
    stopwatch: Stopwatch,
    finalists: int,
    ties: float,
    can_be_kept: CanBeKeptFn,
) -> list[Explored]:
    """Time what would be selected for each budget, print what is over the limit, and leave it out.

    Args:
        explored: the objectives; fronts stay as they are.
        stopwatch: times subnets.
        finalists: so many are tuned for each budget, and all of them are timed; 0: the selected one is.
        ties: as in `predictors.selection.posterior.choose`.
        can_be_kept: whether a lower limit is worth trying.
    """
    kept = []
    for found in explored:
        if found.objective.front:
            kept.append(found)
            continue
        contenders = partial(_contenders, found.estimates, finalists, ties)
        objective, sentence = keep_timed_limit(found.objective, contenders, stopwatch, can_be_kept)
        kept.append(found._replace(objective=objective))
        if sentence:
            print(sentence)
    return kept


def _contenders(
    estimates: Sequence[Estimate], finalists: int, ties: float, constraints: Sequence[Constraint]
) -> list[Codes]:
    best = choose(estimates, constraints, ties)
    found = under(estimates, constraints)[:finalists]
    if not finalists and best:
        found = [best]
    return [estimate.candidate.row for estimate in found]


def keep_timed_limit(
    objective: Objective, contenders: ContendersFn, stopwatch: Stopwatch, can_be_kept: CanBeKeptFn
) -> tuple[Objective, str]:
    """Time what would be selected, and leave out what is over the limit of latency.

    Args:
        objective: with a limit of latency.
        contenders: what a selection would rest on.
        stopwatch: times it.
        can_be_kept: whether some subnet keeps a lower limit by prediction, so that it is worth trying.

    Returns:
        The objective, whose limit no subnet keeps any more that was timed above it, and a sentence for the
        user if there was one. Where three selections in a row are over the limit, or no subnet is left, the
        objective stays as it was: its selection takes too long, and the sentence says so.
    """
    limit = next(c.limit for c in objective.constraints if c.name == "latency")
    rejected: set[bytes] = set()
    times: list[float] = []
    rest = objective
    for _ in range(TRIES):
        rows = contenders(rest.constraints)
        slow = [row for row in rows if stopwatch.time(row) > limit]
        if rows and not slow:
            break
        times += [stopwatch.time(row) for row in slow]
        rejected |= {row.tobytes() for row in slow}
        rest = _without(objective, rejected)
    else:
        rows = []
    if not times:
        return objective, ""
    took = format_cost("latency", times[0])
    if rows:
        return rest, (
            f"{objective.name}: a subnet took {took} when it was timed here, so the next best one that keeps "
            "the limit is selected"
        )
    said = (
        f"{objective.name}: the selected subnet took {took} when it was timed here, which is over the limit"
    )
    # As far below the limit as this subnet is above it, rounded down so that it is not the same limit again.
    below = _round_down(limit * limit / times[0])
    lower = format_cost("latency", below)
    if can_be_kept(_with_latency(objective.constraints, below)):
        others = ", and so are the next best ones" if len(times) > 1 else ""
        return objective, f"{said}{others}; select again with --latency {lower}"
    fastest = format_cost("latency", min(times))
    return objective, (
        f"{said}: no subnet that was timed keeps it (the fastest took {fastest}), and none is predicted to "
        f"keep {lower}"
    )


def _with_latency(constraints: Sequence[Constraint], limit: float) -> list[Constraint]:
    """The same constraints with another limit of latency."""
    changed = []
    for c in constraints:
        changed.append(c._replace(limit=limit) if c.name == "latency" else c)
    return changed


def _round_down(ms: float) -> float:
    """The first three digits of a latency."""
    step = 10.0 ** (np.floor(np.log10(ms)) - 2)
    return float(np.floor(ms / step) * step)


def _without(objective: Objective, rejected: set[bytes]) -> Objective:
    """The same objective, whose limit of latency the rejected rows of codes do not keep."""
    constraints = []
    for c in objective.constraints:
        if c.name == "latency":
            c = c._replace(cost=partial(_infinite_for, frozenset(rejected), c.cost))
        constraints.append(c)
    return objective._replace(constraints=tuple(constraints))


def _infinite_for(rejected: frozenset[bytes], cost: ArchCostFn, codes_NF: Codes) -> Floats:
    is_rejected = np.array([row.tobytes() in rejected for row in codes_NF], np.bool_)
    return np.where(is_rejected, np.inf, cost(codes_NF))
