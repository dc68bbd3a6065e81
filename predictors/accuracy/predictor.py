"""What every accuracy predictor can do, and the scale on which the packaged ones learn."""

from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats

Features = NDArray[np.float32]
CEILING_STDS = 8.0  # of the accuracies, from the best of them to the ceiling of the scale
LEAST_STD = 1e-6  # of an accuracy: no realistic number of validation images shows a smaller difference


class Scale(NamedTuple):
    """The logarithm of the distance from an accuracy to `ceiling`, centred, with standard deviation 1.

    Accuracies saturate: where all are high, a better choice gains little. On this scale the effects of
    choices add up better, and no prediction passes the ceiling.
    """

    ceiling: float
    center: float
    spread: float

    @classmethod
    def of(cls, y: Floats) -> Self:
        """The scale for accuracies (N,): its ceiling is 8 standard deviations above the best of them."""
        # LEAST_STD keeps the logarithm finite where all accuracies are equal.
        ceiling = float(y.max() + CEILING_STDS * max(y.std(), LEAST_STD))
        t = -np.log(ceiling - y)
        return cls(ceiling, float(t.mean()), max(float(t.std()), LEAST_STD))

    def to(self, y: Floats) -> Floats:
        """Accuracies (N,) as values of this scale (N,)."""
        return (-np.log(self.ceiling - y) - self.center) / self.spread

    def back(self, t: Floats) -> Floats:
        """Values of this scale as accuracies in [0, 1], both (N,)."""
        # A predictor may be utterly wrong far from its pairs: within 10 standard deviations exp stays finite.
        below_ceiling = np.exp(-(np.clip(t, -10, 10) * self.spread + self.center))
        return np.clip(self.ceiling - below_ceiling, 0, 1)

    def back_std(self, y: Floats, std: Floats) -> Floats:
        """Standard deviations on this scale as those of accuracies, by the slope of the scale at `y`."""
        return np.maximum(std * self.spread * (self.ceiling - y), LEAST_STD)


class Predictor(Protocol):
    """What every accuracy predictor can do; `predictors.accuracy.models` lists them.

    It is refitted from measured pairs whenever it is needed, and never stored. X: features (N, D) of
    `predictors.accuracy.features`. y: accuracies (N,) in [0, 1]. `scale_`: the scale on which it learned.
    """

    scale_: Scale

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        """Learn from measured subnets. The same seed gives the same predictor."""
        ...

    def update(self, X: Features, y: Floats) -> Self:
        """Learn from these subnets instead, with the hyper-parameters that `fit` found."""
        ...

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement, (N,) each."""
        ...

    def mean(self, X: Features) -> Floats:
        """The mean without the standard deviation, (N,): much faster with a Gaussian process."""
        ...
