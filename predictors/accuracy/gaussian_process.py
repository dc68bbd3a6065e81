"""Accuracy by a Gaussian process: the favourite for 30 to 2,000 measured subnets."""

import warnings
from typing import Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import BayesianRidge

from engine.seed import numpy_generator
from engine.statistics import Floats
from predictors.accuracy.predictor import Features, Scale

HYPER_PAIRS = 500  # hyper-parameters need many fits, and the time of a fit grows with the cube of the pairs


class GaussianProcess:
    """Smooth joint effects of all choices: a Matern 5/2 kernel, plus noise.

    A ridge regression weights the features in distances, each by the root of its coefficient. This is what
    automatic relevance determination is for, without a length scale to fit for each feature.
    Hyper-parameters are fitted to 500 pairs at most; the one fit to all pairs takes a second at 2,000. The
    methods are those of `predictors.accuracy.predictor.Predictor`.
    """

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        some = numpy_generator(seed, "hyper-parameters").permutation(len(y))[:HYPER_PAIRS]
        few = X[some]
        t = Scale.of(y[some]).to(y[some])
        # A feature that ridge regression ignores keeps a small weight: the process may still find it useful.
        effect = np.abs(BayesianRidge().fit(few.astype(np.float64), t).coef_) + 1e-9
        weight = np.sqrt(effect / effect.max() + 1e-3)
        # Weighted features have total variance 1, so the bounds of the length scale fit every space.
        self.weight_ = weight / max(np.sqrt((few * weight).var(axis=0).sum()), 1e-6)
        signal = ConstantKernel(1.0, (1e-3, 1e5)) * Matern(3.0, (1e-1, 1e3), nu=2.5)
        noise = WhiteKernel(0.1, (1e-6, 1e1))
        with warnings.catch_warnings():
            # Pairs without noise, or without signal, drive a term of the kernel to its bound: harmless.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = GaussianProcessRegressor(signal + noise).fit(few * self.weight_, t)
        self.kernel_ = fitted.kernel_
        return self.update(X, y)

    def update(self, X: Features, y: Floats) -> Self:
        self.scale_ = Scale.of(y)
        process = GaussianProcessRegressor(self.kernel_, optimizer=None)
        self.model_ = process.fit(X * self.weight_, self.scale_.to(y))
        return self

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        t, std = self.model_.predict(X * self.weight_, return_std=True)
        mean = self.scale_.back(t)
        return mean, self.scale_.back_std(mean, std)

    def mean(self, X: Features) -> Floats:
        # The kernel written out around one matrix product: a search asks for very many means, and
        # scikit-learn's predict is much slower. The noise of the kernel has no part in a mean.
        amplitude = self.kernel_.k1.k1.constant_value
        length = self.kernel_.k1.k2.length_scale
        a = X * (self.weight_ / length)
        b = self.model_.X_train_ / length
        # Matern 5/2: amplitude * (1 + r + r^2 / 3) * exp(-r), where r = sqrt(5) * distance / length.
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab; rounding can make it negative where a and b are equal.
        square = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)
        r = np.sqrt(square * 5)
        matern = amplitude * (1 + r + r * r / 3) * np.exp(-r)
        return self.scale_.back(matern @ self.model_.alpha_)
