"""Search guided by a predictor: propose, measure the best proposals, learn from them, and propose again."""

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple, Protocol

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes
from predictors.accuracy.features import features
from predictors.accuracy.predictor import Predictor
from predictors.search.best import find_best
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn
from predictors.search.front import find_front, widest_gains
from predictors.selection.evaluations import EvaluateFn, Evaluations
from predictors.selection.intervals import Intervals

PER_ROUND = 5  # the ten best predictions in one go were worse than random subnets (docs/log.md)
# The fifth lies below the limits, so that it is known what less costs. Two of five below made the choice
# worse by 0.1 points in one simulation of two; one of five cost nothing (docs/log.md).
PER_ROUND_AT_LIMIT = 4
SHARES_BELOW = (0.5, 0.7)  # of all limits together, in turn


class Proposer(Protocol):
    """Says what to measure for one objective."""

    def __call__(self, evaluations: Evaluations, score: ScoreFn, additive: ScoreFn) -> Codes:
        """Encoded architectures (M, F), the one to measure first at the top; some may be measured already.

        Args:
            evaluations: what is measured.
            score: predicted accuracy of encoded architectures.
            additive: a function that grows with the score, and in which the effects of choices add up better.
        """
        ...


class BestProposer:
    """Proposes the architectures of the highest score under constraints, and some under a share of them.

    The best predicted ones use all of the limits. So one of five is searched under half or 0.7 of all
    limits, in turn: a user then sees measured what half of the budget costs, and a subnet that is as good for
    less is found.

    Args:
        constraints: the limits.
        rng: of the searches.
    """

    def __init__(self, constraints: Sequence[Constraint], rng: np.random.Generator) -> None:
        self.constraints, self.rng = constraints, rng
        self.shares = cycle(SHARES_BELOW)

    def __call__(self, evaluations: Evaluations, score: ScoreFn, additive: ScoreFn) -> Codes:
        share = next(self.shares)
        below = [c._replace(limit=share * c.limit) for c in self.constraints]
        at_limit = self._fresh(evaluations, score, additive, self.constraints)
        cheaper = self._fresh(evaluations, score, additive, below)
        first = at_limit[:PER_ROUND_AT_LIMIT]
        # A subnet may be the best under the limits and under a share of them.
        taken = {row.tobytes() for row in first}
        cheaper = [row for row in cheaper if row.tobytes() not in taken]
        # Where nothing is as cheap, or everything so cheap is known, the others at the limit follow.
        rest = [*cheaper[: PER_ROUND - PER_ROUND_AT_LIMIT], *at_limit[PER_ROUND_AT_LIMIT:]]
        different = {row.tobytes(): row for row in [*first, *rest]}
        return np.array(list(different.values()), np.uint8).reshape(-1, len(evaluations.space.columns))

    def _fresh(
        self,
        evaluations: Evaluations,
        score: ScoreFn,
        additive: ScoreFn,
        constraints: Sequence[Constraint],
    ) -> list[Codes]:
        known, _ = evaluations.training_set()
        found = find_best(evaluations.space, score, constraints, self.rng, known, additive)
        # More are never measured in a round, also where one appears in both searches.
        return [row for row in found if row not in evaluations][: 2 * PER_ROUND]


class FrontProposer(NamedTuple):
    """Proposes the architectures of a front that should raise the measured front most."""

    costs: Sequence[ArchCostFn]
    constraints: Sequence[Constraint]
    rng: np.random.Generator

    def __call__(self, evaluations: Evaluations, score: ScoreFn, additive: ScoreFn) -> Codes:
        known, y = evaluations.training_set()
        space = evaluations.space
        front = find_front(space, score, self.costs, self.constraints, self.rng, known, additive=additive)
        unmeasured = [row for row in front if row not in evaluations]
        if not unmeasured:
            return front[:0]
        rows = np.stack(unmeasured)
        widest = widest_gains(score(rows), self._costs_of(rows), y, self._costs_of(known), PER_ROUND)
        return rows[widest]

    def _costs_of(self, rows: Codes) -> Floats:
        return np.stack([cost(rows) for cost in self.costs], axis=1).astype(np.float64)


def predictor_guided(
    evaluations: Evaluations,
    predictor: Predictor,
    intervals: Intervals,
    propose: Proposer,
    evaluate: EvaluateFn,
    count: int,
) -> None:
    """Measure at most `count` subnets, and let the fitted `predictor` learn from them.

    A search over predictions finds the subnets of which the predictor is too hopeful. So the predictor learns
    from five measured subnets before it is searched again, and so do its intervals. The rounds end early when
    nothing new is proposed.

    Args:
        evaluations: what is measured; new measurements are added to it.
        predictor: fitted to all that is measured.
        intervals: of the predictor.
        propose: proposes subnets.
        evaluate: measures them.
        count: how many subnets to measure.
    """
    space = evaluations.space

    def score(rows: Codes) -> Floats:
        return predictor.mean(features(space, rows))

    def learned(rows: Codes) -> Floats:
        # On the scale of the predictor effects add up: with ridge regression the search is exact.
        return predictor.scale_.to(score(rows))

    for start in range(0, count, PER_ROUND):
        proposed = propose(evaluations, score, learned)
        fresh = [row for row in proposed if row not in evaluations]
        fresh = fresh[: min(PER_ROUND, count - start)]
        # All that a search finds is known: without new pairs the next round would find the same.
        if not fresh:
            break
        mean, std = predictor.predict(features(space, np.stack(fresh)))
        predictions = intervals.around(mean, std)
        accuracies = evaluations.measure(fresh, evaluate, predictions)
        intervals.learn(mean, std, predictions, np.array(accuracies))
        known, y = evaluations.training_set()
        predictor.update(features(space, known), y)
