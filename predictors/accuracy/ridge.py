"""Accuracy by Bayesian ridge regression: for few measured subnets, or for very many."""

from typing import Self

import numpy as np
from sklearn.linear_model import BayesianRidge

from engine.statistics import Floats
from predictors.accuracy.predictor import Features, Scale


class Ridge:
    """Additive effects of choices, on the scale of `Scale`; cheap for any number of pairs.

    The methods are those of `predictors.accuracy.predictor.Predictor`.
    """

    # Bayesian ridge finds its strength anew in every fit, and cheaply: no hyper-parameters are kept.
    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        return self.update(X, y)

    def update(self, X: Features, y: Floats) -> Self:
        self.scale_ = Scale.of(y)
        self.model_ = BayesianRidge().fit(X.astype(np.float64), self.scale_.to(y))
        return self

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        t, std = self.model_.predict(X, return_std=True)
        mean = self.scale_.back(t)
        return mean, self.scale_.back_std(mean, std)

    def mean(self, X: Features) -> Floats:
        return self.scale_.back(self.model_.predict(X))
