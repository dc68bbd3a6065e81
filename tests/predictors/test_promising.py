"""Predict, measure, learn: with a Gaussian process of many ImageNet measurements as the truth, and another of few to search with."""

from collections.abc import Callable

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space import Arch, Codes, Space, decode, encode, sample_codes
from predictors.accuracy import GaussianProcess
from predictors.explore import Evolution, Scores, evolve, evolve_front
from predictors.features import features
from predictors.measured import Measured
from predictors.pairs import Pair
from predictors.promising import Find, measure_promising
from predictors.quality import Quality

BUDGETS = (200_000_000, 300_000_000)
COUNT = 12
QUALITY = Quality("gp", 0.9, 0.8, 0.001, 1.5, 0.1)


def per_budget(space: Space) -> Find:
    rng, few = np.random.default_rng(0), Evolution(1_024, 32, 128, 10, 0.1)
    return lambda score, first: [(b, evolve(space, score, lambda rows: costs_of(space, rows).macs, b, rng, few)) for b in BUDGETS]


def front(space: Space) -> Find:
    rng = np.random.default_rng(0)

    def find(score: Scores, first: bool) -> list[tuple[int, Codes]]:
        found = evolve_front(space, score, lambda rows: costs_of(space, rows).macs, BUDGETS, rng)
        return [(budget, found[costs_of(space, found).macs <= budget]) for budget in BUDGETS]

    return find


@pytest.mark.parametrize("way", [per_budget, front])
def test_finds_better_subnets_than_it_knew(imagenet: tuple[Space, Codes, np.ndarray], way: Callable[[Space], Find]) -> None:
    space, codes, y = imagenet
    truth = GaussianProcess().fit(features(space, codes[:300]), y[:300], 0)
    asked: list[Arch] = []

    def accuracy(arch: Arch) -> float:
        asked.append(arch)
        return float(truth.predict(features(space, encode(space, arch)[None]))[0][0])

    rows = sample_codes(space, 60, np.random.default_rng(0))
    pairs = [Pair(arch=decode(space, row), val_accuracy=accuracy(decode(space, row)), macs=1, params=1) for row in rows]
    measured = Measured(space, lambda rows: costs_of(space, rows).macs, accuracy, pairs)
    known = {budget: measured.under(budget)[0].val_accuracy for budget in BUDGETS}
    asked.clear()
    X, learnt = features(space, rows), np.array([pair.val_accuracy for pair in pairs])
    measure_promising(measured, GaussianProcess().fit(X, learnt, 0), QUALITY, way(space), COUNT, lambda note: None)
    assert len(set(asked)) == len(asked) == COUNT * len(BUDGETS)
    for budget in BUDGETS:
        best = measured.under(budget)[0]
        assert best.val_accuracy > known[budget] + 0.001
        assert (best.source, best.macs <= budget) == ("select", True)
        assert best.predicted_accuracy == pytest.approx(best.val_accuracy, abs=0.01)


def test_ends_when_everything_found_is_known(tiny: Space) -> None:
    rows = np.unique(sample_codes(tiny, 100, np.random.default_rng(0)), axis=0)
    rounds = []

    def find(score: Scores, first: bool) -> list[tuple[int, Codes]]:
        rounds.append(first)
        return [(10**9, rows[:13]), (10**9, rows[:13])]

    pairs = [Pair(arch=decode(tiny, row), val_accuracy=i / 20, macs=1, params=1) for i, row in enumerate(rows[:10])]
    measured = Measured(tiny, lambda rows: costs_of(tiny, rows, 10, 1).macs, lambda arch: 0.5, pairs)
    codes, y = measured.training_set()
    measure_promising(measured, GaussianProcess().fit(features(tiny, codes), y, 0), QUALITY, find, 1_000, lambda note: None)
    assert rounds == [True, False]
    assert len(measured) == 13
