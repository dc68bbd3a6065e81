"""Intervals that learn from the misses of the predictions before: coverage of a too hopeful predictor."""

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.validation import CandidateQuality, cross_validate
from predictors.selection.intervals import Intervals

TYPICAL_MISS = 0.003
STD = 0.004
SCALE = (TYPICAL_MISS**2 + STD**2) ** 0.5


def quality(rng: np.random.Generator) -> CandidateQuality:
    """Cross-validation of 100 pairs whose misses are normal, with the predictor's own standard deviation."""
    ratios = np.abs(rng.normal(size=100))
    widening = float(np.quantile(ratios, 0.9))
    return CandidateQuality("gp", 0.9, 0.8, TYPICAL_MISS, widening, 0.9, ratios, 0.0)


@pytest.mark.parametrize(
    ("hopeful", "wider"),
    [(0.0, 1.0), (1.0, 1.0), (0.0, 1.6), (1.0, 1.3)],
    ids=["alike", "hopeful", "wide", "both"],
)
def test_nine_of_ten_measurements_are_inside(hopeful: float, wider: float) -> None:
    """Candidates may miss by more than in cross-validation, and to one side.

    In standard deviations: candidates measure `hopeful` less than was predicted, and vary `wider` about that.
    """
    shares, centers = [], []
    for repetition in range(100):
        rng = np.random.default_rng(repetition)
        intervals = Intervals(quality(rng))
        for _ in range(8):
            mean, std = np.full(5, 0.8), np.full(5, STD)
            y = mean + SCALE * (wider * rng.normal(size=5) - hopeful)
            predictions = intervals.around(mean, std)
            intervals.learn(mean, std, predictions, y)
        own = intervals.own_quality()
        assert own.predictions == 40 and own.coverage is not None and own.hopeful is not None
        shares.append(own.coverage)
        centers.append(predictions[0].predicted_accuracy)
    assert 0.85 <= np.mean(shares) <= 0.95
    # After 35 measurements most of the bias is known.
    assert np.mean(centers) == pytest.approx(0.8 - hopeful * SCALE, abs=0.2 * SCALE)


def test_few_predictions_say_nothing_about_themselves() -> None:
    rng = np.random.default_rng(0)
    intervals = Intervals(quality(rng))
    mean, std = np.linspace(0.7, 0.8, 9), np.full(9, STD)
    intervals.learn(mean, std, intervals.around(mean, std), mean)
    assert intervals.own_quality() == (9, None, None, None)
    intervals.learn(mean[:1], std[:1], intervals.around(mean[:1], std[:1]), mean[:1])
    own = intervals.own_quality()
    assert (own.predictions, own.coverage) == (10, 1.0) and own.tau is not None and own.tau > 0.9


def test_a_ranking_of_equal_accuracies_has_no_tau() -> None:
    intervals = Intervals(quality(np.random.default_rng(0)))
    mean, std = np.linspace(0.7, 0.8, 12), np.full(12, STD)
    intervals.learn(mean, std, intervals.around(mean, std), np.full(12, 0.75))
    assert intervals.own_quality().tau is None


@pytest.mark.slow
def test_subnets_that_other_searches_found(
    imagenet_searches: tuple[Space, list[tuple[Codes, np.ndarray]]],
) -> None:
    """300 subnets of one search are known; without learning 69% are inside of what another found last."""
    space, ((known, known_y), (codes, y), _) = imagenet_searches
    known, known_y = known[:300], known_y[:300]
    macs = costs_of(space, known, 1000, 3).macs
    quality = cross_validate("gp", features(space, known), known_y, macs, 0)
    mean, std = GaussianProcess().fit(features(space, known), known_y, 0).predict(features(space, codes))
    intervals, inside = Intervals(quality), []
    for start in range(0, len(y), 5):
        part = slice(start, start + 5)
        predictions = intervals.around(mean[part], std[part])
        intervals.learn(mean[part], std[part], predictions, y[part])
        for prediction, measured in zip(predictions, y[part], strict=True):
            inside.append(prediction.interval[0] <= measured <= prediction.interval[1])
    fixed = np.abs(y - mean) <= quality.half_width(std)
    assert fixed.mean() < 0.75 and fixed[-200:].mean() < 0.7
    assert 0.85 <= np.mean(inside) <= 0.95 and 0.85 <= np.mean(inside[-200:]) <= 0.95
