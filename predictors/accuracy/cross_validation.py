"""How far predicted accuracies can be trusted: each measured subnet is predicted from others.

Its 90% interval is predicted too, so that the share of measurements inside is a check.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from engine.seed import numpy_generator
from engine.statistics import Floats
from predictors.accuracy.predictor import Features
from predictors.accuracy.validation import (
    candidates,
    predict_from_other_folds,
    predictive_std,
    widening_by_other_folds,
)

FOLDS = 5
FEWEST_PAIRS = 20  # fewer are not judged
MOST_PAIRS = 500  # a predictor is fitted for each fold, and a Gaussian process takes the cube of the pairs
BANDS = 5  # at most
BAND_PAIRS = 12  # at least


class CrossValidated(NamedTuple):
    """Pairs that were predicted from others, (N,) each; low and high are the ends of the 90% interval."""

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    macs: NDArray[np.int64]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(N,) whether the measurement is in the interval."""
        return (self.low <= self.measured) & (self.measured <= self.high)

    def take(self, which: NDArray[np.int64]) -> "CrossValidated":
        """The pairs at these indices."""
        return CrossValidated(
            self.measured[which], self.predicted[which], self.low[which], self.high[which], self.macs[which]
        )


class PredictorQuality(NamedTuple):
    """How good the predictor was on a set of pairs.

    pairs: how many pairs.
    tau: Kendall's tau-b of predicted and measured accuracies.
    miss: median of |measured - predicted|, in accuracy.
    coverage: share of the measurements that are inside the intervals.
    """

    pairs: int
    tau: float
    miss: float
    coverage: float


def predict_pairs(X: Features, y: Floats, macs: NDArray[np.int64], seed: int) -> CrossValidated | None:
    """Predict each pair from the other folds, by the favourite predictor for this number of pairs.

    An interval is the prediction plus and minus a multiple of its predictive standard deviation. The multiple
    is such that 90% of the pairs of the other folds are inside. So no pair widens its own interval, and the
    share of pairs inside is a check and not a definition.

    Args:
        X: features (N, D).
        y: measured accuracies (N,).
        macs: multiply-accumulates (N,).
        seed: of the folds and the predictor.

    Returns:
        The pairs with their predictions; a random 500 of them if there are more. None if there are fewer
        than 20.
    """
    if len(y) < FEWEST_PAIRS:
        return None
    some = np.sort(numpy_generator(seed, "judged").permutation(len(y))[:MOST_PAIRS])
    X, y, macs = X[some], y[some], macs[some]
    favourite = candidates("auto", len(y))[0]
    mean, std, fold = predict_from_other_folds(favourite, X, y, seed, FOLDS)
    misses = np.abs(y - mean)
    total_std = predictive_std(std, float(np.median(misses)))
    half = widening_by_other_folds(misses / total_std, fold) * total_std
    return CrossValidated(y, mean, np.maximum(mean - half, 0), np.minimum(mean + half, 1), macs)


def predictor_quality(pairs: CrossValidated) -> PredictorQuality:
    """How good the predictor was on all these pairs."""
    return PredictorQuality(
        pairs=len(pairs.measured),
        tau=float(kendalltau(pairs.measured, pairs.predicted).statistic),
        miss=float(np.median(np.abs(pairs.measured - pairs.predicted))),
        coverage=float(pairs.covered.mean()),
    )


def quality_in_bands(pairs: CrossValidated) -> list[tuple[int, int, PredictorQuality]]:
    """The quality in up to 5 bands of MACs that hold equally many pairs.

    Returns:
        (fewest MACs, most MACs, quality) of each band. A band has at least 12 pairs: the list is empty if
        there are too few for two bands.
    """
    count = min(BANDS, len(pairs.macs) // BAND_PAIRS)
    if count < 2:
        return []
    by_macs = np.argsort(pairs.macs, kind="stable")
    bands = []
    for which in np.array_split(by_macs, count):
        band = pairs.take(which)
        bands.append((int(band.macs[0]), int(band.macs[-1]), predictor_quality(band)))
    return bands
