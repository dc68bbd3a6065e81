"""Accuracy of an architecture, predicted from measured ones, with a standard deviation. Refitted from data,
never pickled.

Accuracies saturate. So predictors learn the logarithm of what is missing to a ceiling, 8 standard deviations
above the best pair: effects of choices add up better there, and no prediction passes the ceiling.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import BayesianRidge

from engine.seed import numpy_generator, torch_generator

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Member = Literal["gp", "ridge", "boosting", "mlp"]
CEILING = 8.0
LEAST_STD = 1e-6  # of an accuracy; what nobody can measure
HYPER_PAIRS = 500
LEARNERS = 5
HIDDEN, STEPS, RATE, DECAY = 64, 200, 1e-2, 2.0


class Predictor(Protocol):
    """What every predictor can do. X: (N, D) features; y: (N,) accuracies in [0, 1]. `scale_` is what it
    learns them on."""

    scale_: "Scale"

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        """Learn from measured subnets; the same seed gives the same predictor."""
        ...

    def update(self, X: Features, y: Floats) -> Self:
        """Learn from more subnets, keeping the hyper-parameters that `fit` found."""
        ...

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement, (N,) each."""
        ...

    def mean(self, X: Features) -> Floats:
        """The mean alone: much faster with a Gaussian process."""
        ...


class Scale(NamedTuple):
    """The logarithm of what is missing to `ceiling`, centred, with standard deviation 1."""

    ceiling: float
    center: float
    spread: float

    @classmethod
    def of(cls, y: Floats) -> Self:
        """The scale on which to learn `y`."""
        ceiling = float(y.max() + CEILING * max(y.std(), LEAST_STD))
        t = -np.log(ceiling - y)
        return cls(ceiling, float(t.mean()), max(float(t.std()), LEAST_STD))

    def to(self, y: Floats) -> Floats:
        """Accuracies on this scale."""
        return (-np.log(self.ceiling - y) - self.center) / self.spread

    def back(self, t: Floats) -> Floats:
        """Accuracies again; of what a predictor got utterly wrong, still numbers in [0, 1]."""
        return np.clip(self.ceiling - np.exp(-(np.clip(t, -10, 10) * self.spread + self.center)), 0, 1)

    def back_std(self, y: Floats, std: Floats) -> Floats:
        """Standard deviations around accuracies `y`, by the slope there."""
        return np.maximum(std * self.spread * (self.ceiling - y), LEAST_STD)


class GaussianProcess:
    """Smooth joint effects of all choices: a Matern 5/2 kernel, plus noise.

    Distances are weighted by what each feature does in ridge regression (the root of its coefficient):
    automatic relevance that costs nothing. Hyper-parameters are fitted to 500 pairs at most; what is left of
    n^3 takes a second at 2,000.
    """

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        some = numpy_generator(seed, "hyper-parameters").permutation(len(y))[:HYPER_PAIRS]
        few, t = X[some], Scale.of(y[some]).to(y[some])
        effect = np.abs(BayesianRidge().fit(few.astype(np.float64), t).coef_) + 1e-9
        weight = np.sqrt(effect / effect.max() + 1e-3)
        self.weight_ = weight / max(np.sqrt((few * weight).var(axis=0).sum()), 1e-6)
        kernel = ConstantKernel(1.0, (1e-3, 1e5)) * Matern(3.0, (1e-1, 1e3), nu=2.5) + WhiteKernel(
            0.1, (1e-6, 1e1)
        )
        with (
            warnings.catch_warnings()
        ):  # pairs without noise or without signal drive a kernel term to its bound: harmless
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.kernel_ = GaussianProcessRegressor(kernel).fit(few * self.weight_, t).kernel_
        return self.update(X, y)

    def update(self, X: Features, y: Floats) -> Self:
        self.scale_ = Scale.of(y)
        self.model_ = GaussianProcessRegressor(self.kernel_, optimizer=None).fit(
            X * self.weight_, self.scale_.to(y)
        )
        return self

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        t, std = self.model_.predict(X * self.weight_, return_std=True)
        mean = self.scale_.back(t)
        return mean, self.scale_.back_std(mean, std)

    def mean(self, X: Features) -> Floats:
        known, c, length = (
            self.model_.X_train_,
            self.kernel_.k1.k1.constant_value,
            self.kernel_.k1.k2.length_scale,
        )
        a, b = X * (self.weight_ / length), known / length
        r = np.sqrt(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0) * 5)
        return self.scale_.back(c * (1 + r + r * r / 3) * np.exp(-r) @ self.model_.alpha_)


class Ridge:
    """Additive effects of choices (Bayesian ridge): for few pairs, or for more than a Gaussian process can
    bear."""

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


Learner = Callable[[Features, Floats, Floats, int], Callable[[Features], Floats]]


class Ensemble:
    """Learners that each leave out another part of the pairs, so that every pair says how wrong the ensemble
    is about new ones.

    The variance of a measurement is how much the learners disagree there, plus the mean squared error on
    pairs left out.

    Args:
        learn: from features (N, D), targets (N,), weights (M, N) that are 0 or 1, and a seed to a function
            from features to (M, N).
    """

    def __init__(self, learn: Learner) -> None:
        self.learn = learn

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        self.seed_ = seed
        return self.update(X, y)

    def update(self, X: Features, y: Floats) -> Self:
        self.scale_ = Scale.of(y)
        t, kept = self.scale_.to(y), np.ones((LEARNERS, len(y)))
        order = numpy_generator(self.seed_, "left out").permutation(len(y))
        kept[np.arange(len(y)) % LEARNERS, order] = 0
        self.model_ = self.learn(X, t, kept, self.seed_)
        self.error_ = float(np.mean(((self.model_(X) - t)[kept == 0]) ** 2))
        return self

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        t = self.model_(X)
        mean = self.scale_.back(t.mean(axis=0))
        return mean, self.scale_.back_std(mean, np.sqrt(t.var(axis=0) + self.error_))

    def mean(self, X: Features) -> Floats:
        return self.scale_.back(self.model_(X).mean(axis=0))


def boosting(X: Features, t: Floats, kept_MN: Floats, seed: int) -> Callable[[Features], Floats]:
    """Gradient-boosted trees."""
    settings = {
        "max_iter": 100,
        "learning_rate": 0.1,
        "max_leaf_nodes": 8,
        "min_samples_leaf": 5,
        "max_bins": 32,
    }
    trees = [
        HistGradientBoostingRegressor(**settings, early_stopping=False).fit(X[k], t[k]) for k in kept_MN > 0
    ]
    return lambda X: np.stack([tree.predict(X) for tree in trees])


def mlp(X: Features, t: Floats, kept_MN: Floats, seed: int) -> Callable[[Features], Floats]:
    """Networks of two hidden layers (ReLU), all trained at once by AdamW on all pairs in each step, as one
    batched product."""
    center, spread = X.mean(axis=0), np.where(X.std(axis=0) > 0, X.std(axis=0), 1)
    generator = torch_generator("cpu", seed, "mlp")
    sizes = [X.shape[1], HIDDEN, HIDDEN, 1]
    weights = [
        torch.randn(len(kept_MN), i, o, generator=generator) * 0.7 / i**0.5
        for i, o in itertools.pairwise(sizes)
    ]
    biases = [torch.zeros(len(kept_MN), 1, o) for o in sizes[1:]]
    for tensor in (*weights, *biases):
        tensor.requires_grad_()

    def forward(X: Features) -> torch.Tensor:
        h = torch.from_numpy(((X - center) / spread).astype(np.float32)).expand(len(kept_MN), -1, -1)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            h = torch.baddbmm(bias, h.relu() if i else h, weight)
        return h.squeeze(-1)

    target, kept = torch.from_numpy(t.astype(np.float32)), torch.from_numpy(kept_MN.astype(np.float32))
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}], lr=RATE
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((forward(X) - target) ** 2 * kept).mean().mul(len(kept)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    def predict(X: Features) -> Floats:
        with torch.no_grad():
            return forward(X).double().numpy()

    return predict


def make_predictor(member: Member) -> Predictor:
    """The predictor of that name."""
    match member:
        case "gp":
            return GaussianProcess()
        case "ridge":
            return Ridge()
        case "boosting":
            return Ensemble(boosting)
        case "mlp":
            return Ensemble(mlp)
