"""Search guided by a predictor: propose, measure the best proposals, learn from them, and propose again."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes
from predictors.accuracy.features import features
from predictors.accuracy.predictor import Features, Predictor
from predictors.accuracy.validation import CandidateQuality
from predictors.search.best import find_best
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn
from predictors.search.dynamic_programming import LayerCost, additive_fronts
from predictors.search.front import find_front, widest_gains
from predictors.selection.evaluations import EvaluateFn, Evaluations, Prediction

PER_ROUND = 5  # the ten best predictions in one go were worse than random subnets (docs/log.md)


class Proposer(Protocol):
    """Says what to measure for one objective."""

    def __call__(self, evaluations: Evaluations, score: ScoreFn, seeds: Codes) -> Codes:
        """Encoded architectures (M, F), the one to measure first at the top; some may be measured already.

        Args:
            evaluations: what is measured.
            score: predicted accuracy of encoded architectures.
            seeds: encoded architectures (N, F) to start a search from.
        """
        ...


class BestProposer(NamedTuple):
    """Proposes the architectures of the highest score under constraints."""

    constraints: Sequence[Constraint]
    rng: np.random.Generator

    def __call__(self, evaluations: Evaluations, score: ScoreFn, seeds: Codes) -> Codes:
        return find_best(evaluations.space, score, self.constraints, self.rng, seeds)


class FrontProposer(NamedTuple):
    """Proposes the architectures of a front that should raise the measured front most."""

    costs: Sequence[ArchCostFn]
    constraints: Sequence[Constraint]
    rng: np.random.Generator

    def __call__(self, evaluations: Evaluations, score: ScoreFn, seeds: Codes) -> Codes:
        front = find_front(evaluations.space, score, self.costs, self.constraints, self.rng, seeds)
        unmeasured = [row for row in front if row not in evaluations]
        if not unmeasured:
            return front[:0]
        rows = np.stack(unmeasured)
        known, y = evaluations.training_set()
        widest = widest_gains(score(rows), self._costs_of(rows), y, self._costs_of(known), PER_ROUND)
        return rows[widest]

    def _costs_of(self, rows: Codes) -> Floats:
        return np.stack([cost(rows) for cost in self.costs], axis=1).astype(np.float64)


def predictor_guided(
    evaluations: Evaluations,
    predictor: Predictor,
    quality: CandidateQuality,
    sums: Sequence[Sequence[LayerCost]],
    objectives: Iterable[tuple[Proposer, EvaluateFn]],
    count: int,
    rng: np.random.Generator,
) -> None:
    """Measure at most `count` subnets for each objective, and let the fitted `predictor` learn from them.

    A search over predictions finds the subnets of which the predictor is too hopeful. So the predictor learns
    from five measured subnets of each objective before it is searched again. Every search starts from the
    fronts of an additive predictor and from what is measured. The rounds end early when nothing new is
    proposed.

    Args:
        evaluations: what is measured; new measurements are added to it.
        predictor: fitted to all that is measured.
        quality: of the predictor, for its intervals.
        sums: costs as sums over layers; the search starts from a front against each of them.
        objectives: for each objective the function that proposes subnets and the one that measures them.
        count: how many subnets to measure for each objective.
        rng: of the additive predictor.
    """
    space, objectives = evaluations.space, list(objectives)

    def score(rows: Codes) -> Floats:
        return predictor.mean(features(space, rows))

    def learned(rows: Codes) -> Floats:
        # On the scale of the predictor effects add up: with ridge regression the additive front is exact.
        return predictor.scale_.to(score(rows))

    for start in range(0, count, PER_ROUND):
        measured_before = len(evaluations)
        known, _ = evaluations.training_set()
        seeds = np.concatenate([additive_fronts(space, learned, sums, rng), known])
        # A subnet that was measured for one objective counts for the next ones, too: `evaluations` is shared.
        for propose, evaluate in objectives:
            proposed = propose(evaluations, score, seeds)
            fresh = [row for row in proposed if row not in evaluations]
            fresh = fresh[: min(PER_ROUND, count - start)]
            if fresh:
                predictions = _predictions(predictor, quality, features(space, np.stack(fresh)))
                evaluations.measure(fresh, evaluate, predictions)
        # All that a search finds is known: without new pairs the next round would find the same.
        if len(evaluations) == measured_before:
            break
        known, y = evaluations.training_set()
        predictor.update(features(space, known), y)


def _predictions(predictor: Predictor, quality: CandidateQuality, X: Features) -> list[Prediction]:
    """What the predictor says of features (N, D), with 90% intervals."""
    mean, std = predictor.predict(X)
    half = quality.half_width(std)
    low, high = np.clip([mean - half, mean + half], 0, 1)
    found = []
    for i in range(len(X)):
        found.append(Prediction(float(mean[i]), float(std[i]), (float(low[i]), float(high[i]))))
    return found
