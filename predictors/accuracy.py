"""Accuracy of an architecture, predicted from measured ones, with a standard deviation. Refitted from data, never pickled."""

import warnings
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import KFold

from engine.seed import derive

Floats = NDArray[np.float64]
Name = Literal["auto", "gp", "ridge"]
GP_AT_MOST = 2_000
GP_AT_LEAST = 30


class Predictor(Protocol):
    """What every predictor can do. X: (N, F) features; y: (N,) accuracies in [0, 1]."""

    def fit(self, X: NDArray[np.float32], y: Floats, seed: int) -> Self:
        """Learn from measured subnets; the same seed gives the same predictor."""
        ...

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Mean and standard deviation, (N,) each."""
        ...


class GaussianProcess:
    """Smooth effects of choices plus their interactions: a linear and a squared-exponential kernel on the one-hot choices.

    Fitting n pairs costs n^3; 2,000 take about a minute on two cores.
    """

    def fit(self, X: NDArray[np.float32], y: Floats, seed: int) -> Self:
        kernel = ConstantKernel(1.0) * RBF(3.0) + ConstantKernel(0.1) * DotProduct(1.0) + WhiteKernel(0.1)
        self.model_ = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed % 2**32)
        with warnings.catch_warnings():  # a kernel term that the data does not need runs to its bound: harmless
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model_.fit(X, y)
        return self

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(X, return_std=True)
        return mean, std


class Ridge:
    """Additive effects of choices (Bayesian ridge): for few pairs, or for more than a Gaussian process can bear."""

    def fit(self, X: NDArray[np.float32], y: Floats, seed: int) -> Self:
        self.model_ = BayesianRidge().fit(X, y)
        return self

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(X, return_std=True)
        return mean, std


def make_predictor(name: Name, pairs: int) -> Predictor:
    """The predictor of that name; `auto` is a Gaussian process between 30 and 2,000 pairs, else ridge."""
    if name == "auto":
        name = "gp" if GP_AT_LEAST <= pairs <= GP_AT_MOST else "ridge"
    return GaussianProcess() if name == "gp" else Ridge()


def cross_validated_tau(name: Name, X: NDArray[np.float32], y: Floats, seed: int, folds: int = 5) -> float:
    """Kendall's tau-b between measured and predicted accuracy, each predicted from the other folds."""
    predicted = np.empty_like(y)
    for train, held in KFold(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32).split(X):
        predicted[held] = make_predictor(name, len(y)).fit(X[train], y[train], seed).predict(X[held])[0]
    return float(kendalltau(y, predicted).statistic)
