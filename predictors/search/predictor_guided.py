"""Candidates by predicted accuracy: find the most promising, measure a few, learn from them, and find
again."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ofa.space.codes import Codes
from predictors.accuracy.features import features
from predictors.accuracy.models import Predictor
from predictors.accuracy.validation import Quality
from predictors.search.constraints import Constraint, Costs, Floats, Scores
from predictors.search.dynamic_programming import Part
from predictors.search.evaluations import Ask, Measured, Prediction
from predictors.search.evolution import additive_fronts, search, search_front, widest_gains

PER_ROUND = 5


class Find(Protocol):
    """What is to be measured for one goal, the most promising first."""

    def __call__(self, measured: Measured, score: Scores, seeds: Codes) -> Codes:
        """Architectures by score, some of which may be measured already. seeds: where to start."""
        ...


class Best(NamedTuple):
    """The best under constraints."""

    constraints: Sequence[Constraint]
    rng: np.random.Generator

    def __call__(self, measured: Measured, score: Scores, seeds: Codes) -> Codes:
        return search(measured.space, score, self.constraints, self.rng, seeds)


class Front(NamedTuple):
    """A whole front of accuracy against costs under constraints: what should raise the measured front most
    comes first."""

    costs: Sequence[Costs]
    constraints: Sequence[Constraint]
    rng: np.random.Generator

    def __call__(self, measured: Measured, score: Scores, seeds: Codes) -> Codes:
        found = search_front(measured.space, score, self.costs, self.constraints, self.rng, seeds)
        found = np.array([row for row in found if row not in measured], np.uint8).reshape(-1, found.shape[1])
        known, y = measured.training_set()
        return (
            found[widest_gains(score(found), self._of(found), y, self._of(known), PER_ROUND)]
            if len(found)
            else found
        )

    def _of(self, rows: Codes) -> Floats:
        return np.stack([cost(rows) for cost in self.costs], axis=1).astype(np.float64)


def measure_promising(
    measured: Measured,
    predictor: Predictor,
    quality: Quality,
    sums: Sequence[Sequence[Part]],
    goals: Iterable[tuple[Find, Ask]],
    count: int,
    rng: np.random.Generator,
) -> None:
    """Measure at most `count` subnets for each goal, and let the fitted `predictor` learn from them.

    A search over predictions finds where the predictor is too hopeful. So it learns from five for each goal
    before it is searched again. Every search starts from the fronts of an additive predictor and from the
    best that is measured.

    Args:
        quality: of the predictor, for its intervals.
        sums: costs of which those fronts are.
        goals: each with whom to ask for accuracies.
    """
    space, goals = measured.space, list(goals)

    def score(rows: Codes) -> Floats:
        return predictor.mean(features(space, rows))

    def learned(rows: Codes) -> Floats:  # on the scale on which ridge regression is additive
        return predictor.scale_.to(score(rows))

    for start in range(0, count, PER_ROUND):
        before = len(measured)
        known, y = measured.training_set()
        seeds = np.concatenate([additive_fronts(space, learned, sums, rng), known])
        for find, ask in goals:
            found = find(measured, score, seeds)
            fresh = [row for row in found if row not in measured][: min(PER_ROUND, count - start)]
            if fresh:
                mean, std = predictor.predict(features(space, np.stack(fresh)))
                half = quality.half_width(std)
                low, high = np.clip([mean - half, mean + half], 0, 1)
                said = zip(
                    mean.tolist(), std.tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True
                )
                measured.measure(fresh, ask, [Prediction(*facts) for facts in said])
        if len(measured) == before:
            break
        known, y = measured.training_set()
        predictor.update(features(space, known), y)
