"""Predict, measure, learn: with a Gaussian process of many ImageNet measurements as the truth, and another of
few to search with."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.codes import Codes, decode, sample_codes
from ofa.space.space import Space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.pairs import Pair
from predictors.accuracy.validation import CandidateQuality
from predictors.search.constraints import Constraint, ScoreFn
from predictors.selection.evaluations import Evaluations, Prediction
from predictors.selection.intervals import Intervals
from predictors.selection.predictor_guided import BestProposer, FrontProposer, Proposer, predictor_guided

BUDGETS = (200_000_000, 300_000_000)
COUNT = 12
QUALITY = CandidateQuality(
    "gp",
    tau=0.9,
    tau_in_bands=0.8,
    typical_miss=0.002,
    widening=2.0,
    coverage=0.9,
    ratios=np.linspace(0, 2.2, 12),
    seconds=0.0,
)


def macs_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 1000, 3).macs


def best(space: Space) -> list[Proposer]:
    limits = [[Constraint("macs", budget, partial(macs_of, space))] for budget in BUDGETS]
    return [BestProposer(limit, np.random.default_rng(0)) for limit in limits]


def front(space: Space) -> list[Proposer]:
    macs = partial(macs_of, space)
    return [FrontProposer([macs], [Constraint("macs", max(BUDGETS), macs)], np.random.default_rng(0))] * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", [best, front])
def test_finds_better_subnets_than_it_knew(
    imagenet: tuple[Space, Codes, np.ndarray], way: Callable[[Space], list[Proposer]]
) -> None:
    space, codes, y = imagenet
    truth = GaussianProcess().fit(features(space, codes[:300]), y[:300], 0)
    asked: list[bytes] = []

    def evaluate(rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> list[float]:
        asked.extend(row.tobytes() for row in rows)
        return [float(a) for a in truth.mean(features(space, np.stack(rows)))]

    rows = sample_codes(space, 60, np.random.default_rng(0))
    learnt = np.array(evaluate(list(rows), []))
    pairs = [
        Pair(arch=decode(space, row), val_accuracy=float(a), macs=1, params=1)
        for row, a in zip(rows, learnt, strict=True)
    ]
    evaluations = Evaluations(space, 10_000, pairs)
    limits = [[Constraint("macs", budget, partial(macs_of, space))] for budget in BUDGETS]
    known = [evaluations.under(limit)[0].val_accuracy for limit in limits]
    asked.clear()
    for propose in way(space):
        predictor = GaussianProcess().fit(features(space, rows), learnt, 0)
        predictor_guided(evaluations, predictor, Intervals(QUALITY), propose, evaluate, COUNT)
    assert len(set(asked)) == len(asked) == COUNT * len(BUDGETS)
    for limit, before in zip(limits, known, strict=True):
        found = evaluations.under(limit)[0]
        assert found.val_accuracy > before + 0.001
        assert found.source == "select" and found.prediction is not None
        assert found.prediction.predicted_accuracy == pytest.approx(found.val_accuracy, abs=0.01)


def test_ends_when_everything_found_is_known(tiny: Space) -> None:
    rows = np.unique(sample_codes(tiny, 100, np.random.default_rng(0)), axis=0)
    rounds: list[int] = []

    def propose(evaluations: Evaluations, score: ScoreFn, additive: ScoreFn) -> Codes:
        rounds.append(len(evaluations))
        return rows[:13]

    def evaluate(rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> list[float]:
        return [0.5] * len(rows)

    pairs = [
        Pair(arch=decode(tiny, row), val_accuracy=i / 20, macs=1, params=1) for i, row in enumerate(rows[:10])
    ]
    evaluations = Evaluations(tiny, 100, pairs)
    codes, y = evaluations.training_set()
    predictor = GaussianProcess().fit(features(tiny, codes), y, 0)
    predictor_guided(evaluations, predictor, Intervals(QUALITY), propose, evaluate, 1_000)
    assert len(rounds) == 2
    assert len(evaluations) == 13


def test_some_candidates_lie_below_the_limit(tiny: Space) -> None:
    """Four of five under the limit, one under half of it, then 0.7: what less costs is measured."""
    budget = 90_000

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    def score(rows: Codes) -> np.ndarray:
        return macs(rows).astype(float)

    evaluations = Evaluations(tiny, 100, [])
    for row in sample_codes(tiny, 60, np.random.default_rng(0)):
        if macs(row[None])[0] > budget:
            evaluations.add(row, 0.5, "pairs")
    propose = BestProposer([Constraint("macs", budget, macs)], np.random.default_rng(0))
    for share in (0.5, 0.7, 0.5):
        rows = propose(evaluations, score, score)[:5]
        assert len(np.unique(rows, axis=0)) == 5
        used = macs(rows) / budget
        assert (used[:4] > 0.8).all() and (used[:4] <= 1).all()
        assert 0.8 * share < used[4] <= share
        for row in rows:
            evaluations.add(row, 0.5, "select")
    too_small = BestProposer([Constraint("macs", macs(rows).min() / 4, macs)], np.random.default_rng(0))
    assert len(too_small(evaluations, score, score)) == 0
