"""90% intervals around predictions, which learn from how far off their predictions turned out to be.

Cross-validation measures how far off a predictor is for subnets that are drawn like the known ones. A search
looks for subnets that differ from them, and finds those of which the predictor is too hopeful. So each
measured prediction moves and widens the intervals of the next ones. The width is a weighted conformal
quantile (Barber et al., Conformal prediction beyond exchangeability, 2023, arXiv:2202.13415): the latest
misses of the search's own predictions have weight 1 each, earlier ones less; those of cross-validation share
a fixed weight. These are also scaled by how much larger or smaller the own misses are: a standard deviation
is known after a few misses, their 90% quantile only after many.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from engine.statistics import Floats, conformal_quantile
from predictors.accuracy.predictor import LEAST_STD
from predictors.accuracy.validation import CandidateQuality, predictive_std
from predictors.selection.evaluations import Prediction

# All misses of cross-validation together weigh as much as so many own predictions. With less weight the first
# intervals would rest on a handful of misses, with more they would learn too late (docs/log.md).
CROSS_VALIDATION_WEIGHT = 20.0
# After so many own predictions half of their mean miss counts as a bias, and half of the difference in their
# variance as real: in fewer both are luck.
PATIENCE = 5.0
# The weight of an own prediction falls by e while so many others follow: a search moves on to other subnets.
MEMORY = 50.0
FEWEST_TO_JUDGE = 10  # own predictions: fewer say nothing about a tau or about a share of 90%


class OwnQuality(NamedTuple):
    """How good the predictions were that a search made before it measured; None where they are too few.

    predictions: how many.
    tau: Kendall's tau-b of predicted and measured accuracies; None also if all of one of them are equal.
    coverage: share of the measurements that are inside the intervals.
    hopeful: mean of predicted - measured, in accuracy.
    """

    predictions: int
    tau: float | None = None
    coverage: float | None = None
    hopeful: float | None = None


class Intervals:
    """Predictions with 90% intervals, corrected by the misses of the predictions before.

        intervals = Intervals(quality)
        mean, std = predictor.predict(X)
        predictions = intervals.around(mean, std)
        intervals.learn(mean, std, predictions, y)  # as soon as these subnets are measured

    Args:
        quality: what cross-validation says of the predictor.
    """

    def __init__(self, quality: CandidateQuality) -> None:
        self.quality = quality
        # Of every measured prediction, in that order: (measured - predicted) / predictive std before the
        # correction, whether the measurement is in the interval, the two accuracies.
        self._misses: list[float] = []
        self._inside: list[bool] = []
        self._predicted: list[float] = []
        self._measured: list[float] = []

    def around(self, mean_N: Floats, std_N: Floats) -> list[Prediction]:
        """Corrected predictions of N subnets, with their intervals.

        Args:
            mean_N: what the predictor says.
            std_N: its standard deviations.
        """
        bias, widening = self._correction()
        scale_N = predictive_std(std_N, self.quality.typical_miss)
        center_N = np.clip(mean_N + bias * scale_N, 0, 1)
        low_N = np.clip(center_N - widening * scale_N, 0, 1)
        high_N = np.clip(center_N + widening * scale_N, 0, 1)
        predictions = []
        for center, std, low, high in zip(center_N, std_N, low_N, high_N, strict=True):
            predictions.append(Prediction(float(center), float(std), (float(low), float(high))))
        return predictions

    def learn(self, mean_N: Floats, std_N: Floats, predictions: Sequence[Prediction], y: Floats) -> None:
        """Learn what predictions turned out to be.

        Args:
            mean_N: what the predictor said.
            std_N: its standard deviations.
            predictions: what `around` made of them.
            y: the measured accuracies (N,).
        """
        self._misses += ((y - mean_N) / predictive_std(std_N, self.quality.typical_miss)).tolist()
        for prediction, measured in zip(predictions, y.tolist(), strict=True):
            assert prediction.interval is not None
            low, high = prediction.interval
            self._inside.append(low <= measured <= high)
            self._predicted.append(prediction.predicted_accuracy)
            self._measured.append(measured)

    def _correction(self) -> tuple[float, float]:
        """(bias, half of an interval), in predictive standard deviations."""
        misses, known = np.array(self._misses), self.quality.ratios
        weights = np.exp(-np.arange(len(misses))[::-1] / MEMORY)
        bias = float(weights @ misses) / (weights.sum() + PATIENCE)
        own = np.abs(misses - bias)
        variance = np.mean(known**2) + LEAST_STD**2
        scale = (weights @ own**2 / variance + PATIENCE) / (weights.sum() + PATIENCE)
        ratios = np.concatenate([own, known * np.sqrt(scale)])
        shares = np.full(len(known), CROSS_VALIDATION_WEIGHT / len(known))
        return bias, conformal_quantile(ratios, np.concatenate([weights, shares]))

    def own_quality(self) -> OwnQuality:
        """How good the measured predictions were."""
        count = len(self._measured)
        if count < FEWEST_TO_JUDGE:
            return OwnQuality(count)
        tau = float(kendalltau(self._measured, self._predicted).statistic)
        return OwnQuality(
            count,
            tau=None if np.isnan(tau) else tau,
            coverage=float(np.mean(self._inside)),
            hopeful=float(np.mean(self._predicted) - np.mean(self._measured)),
        )
