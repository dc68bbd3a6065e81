"""Accuracy of an architecture, predicted from measured ones, with a standard deviation. Refitted from data, never pickled."""

import warnings
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
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

    def update(self, X: NDArray[np.float32], y: Floats) -> Self:
        """Learn from more subnets, keeping the hyper-parameters that `fit` found."""
        ...

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Mean and standard deviation, (N,) each."""
        ...

    def mean(self, X: NDArray[np.float32]) -> Floats:
        """The mean alone, (N,): what a search asks for, many times over."""
        ...


class GaussianProcess:
    """Smooth joint effects of all choices: a Matern 5/2 kernel on the thermometer code, plus noise.

    Fitting n pairs costs n^3, dozens of times over: 300 take half a second, 2,000 about a minute on two cores.
    """

    def fit(self, X: NDArray[np.float32], y: Floats, seed: int) -> Self:
        kernel = ConstantKernel(1.0) * Matern(3.0, nu=2.5) + WhiteKernel(0.1)
        with warnings.catch_warnings():  # pairs without noise or without signal drive a kernel term to its bound: harmless
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model_ = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed % 2**32).fit(X, y)
        self.center_, self.scale_ = float(y.mean()), float(y.std())
        return self

    def update(self, X: NDArray[np.float32], y: Floats) -> Self:
        self.model_ = GaussianProcessRegressor(self.model_.kernel_, optimizer=None, normalize_y=True).fit(X, y)
        self.center_, self.scale_ = float(y.mean()), float(y.std())
        return self

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(X, return_std=True)
        return mean, std

    def mean(self, X: NDArray[np.float32]) -> Floats:
        """As `predict`, ten times faster: features are 0 or 1, so the squared distance is a count and the kernel a table of few entries."""
        known = self.model_.X_train_
        counts = X.sum(1)[:, None] + known.sum(1) - 2 * X @ known.T
        kernel = self.model_.kernel_(np.zeros((1, 1)), np.sqrt(np.arange(X.shape[1] + 1.0))[:, None])[0]
        return self.center_ + self.scale_ * (kernel[counts.astype(np.intp)] @ self.model_.alpha_)


class Ridge:
    """Additive effects of choices (Bayesian ridge): for few pairs, or for more than a Gaussian process can bear."""

    def fit(self, X: NDArray[np.float32], y: Floats, seed: int) -> Self:
        return self.update(X, y)

    def update(self, X: NDArray[np.float32], y: Floats) -> Self:
        self.model_ = BayesianRidge().fit(X, y)
        return self

    def predict(self, X: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(X, return_std=True)
        return mean, std

    def mean(self, X: NDArray[np.float32]) -> Floats:
        return self.model_.predict(X)


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
