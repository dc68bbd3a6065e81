"""How far the accuracy predictor can be trusted: every measured subnet predicted from others, with an
interval that is checked too."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from engine.seed import numpy_generator
from predictors.accuracy.models import Floats
from predictors.accuracy.validation import candidates, conformal_quantile, doubt, predict_from_other_folds

FOLDS = 5
LEAST, JUDGED = 20, 500
BANDS, BAND_PAIRS = 5, 12


class HeldOut(NamedTuple):
    """Pairs, (N,) each: measured and predicted accuracy, the 90% interval of the prediction, and MACs."""

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    macs: NDArray[np.int64]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(N,) whether the measurement is in the interval."""
        return (self.low <= self.measured) & (self.measured <= self.high)

    def only(self, which: NDArray[np.int64]) -> "HeldOut":
        """Those at some places."""
        return HeldOut(
            self.measured[which], self.predicted[which], self.low[which], self.high[which], self.macs[which]
        )


class Trust(NamedTuple):
    """What they say together. tau: Kendall's tau-b; miss: median of |measured - predicted|; coverage: share
    inside the intervals."""

    pairs: int
    tau: float
    miss: float
    coverage: float


def predict_held_out(X: NDArray[np.float32], y: Floats, macs: NDArray[np.int64], seed: int) -> HeldOut | None:
    """Each pair predicted from the other folds; none if fewer than 20 are known. Of more than 500, a random
    500 are judged.

    An interval is the prediction plus and minus a multiple of how unsure it is. The multiple is such that 90%
    of the pairs of the other folds are inside: no pair widens its own interval, so that the share inside is a
    check and not a definition.
    """
    if len(y) < LEAST:
        return None
    some = np.sort(numpy_generator(seed, "judged").permutation(len(y))[:JUDGED])
    X, y, macs = X[some], y[some], macs[some]
    member = candidates("auto", len(y))[0]
    mean, std, fold = predict_from_other_folds(member, X, y, seed, FOLDS)
    misses = np.abs(y - mean)
    unsure = doubt(std, float(np.median(misses))) + 1e-9
    half = np.empty_like(y)
    for i in range(FOLDS):
        half[fold == i] = conformal_quantile((misses / unsure)[fold != i])
    half *= unsure
    return HeldOut(y, mean, np.maximum(mean - half, 0), np.minimum(mean + half, 1), macs)


def trust(pairs: HeldOut) -> Trust:
    """Of all pairs given."""
    tau = float(kendalltau(pairs.measured, pairs.predicted).statistic)
    return Trust(
        len(pairs.measured),
        tau,
        float(np.median(np.abs(pairs.measured - pairs.predicted))),
        float(pairs.covered.mean()),
    )


def bands(pairs: HeldOut) -> list[tuple[int, int, Trust]]:
    """(fewest MACs, most MACs, trust) of up to 5 bands that hold equally many pairs, at least 12; none if
    there are too few."""
    count = min(BANDS, len(pairs.macs) // BAND_PAIRS)
    if count < 2:
        return []
    groups = [pairs.only(which) for which in np.array_split(np.argsort(pairs.macs, kind="stable"), count)]
    return [(int(group.macs[0]), int(group.macs[-1]), trust(group)) for group in groups]
