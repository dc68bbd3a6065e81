"""Accuracy by ensembles of gradient-boosted trees or of small networks: for 300 measured subnets and more."""

from collections.abc import Callable
from itertools import pairwise
from typing import Self

import numpy as np
import torch

from engine.errors import UserError
from engine.seed import numpy_generator, torch_generator
from engine.statistics import Floats
from predictors.accuracy.predictor import Features, Scale

LEARNERS = 5
TREES = 100  # of each forest
HIDDEN = 64  # width of the hidden layers
# AdamW trains the networks.
STEPS = 200
RATE = 1e-2
DECAY = 2.0
Learned = Callable[[Features], Floats]  # (N, D) features -> (M, N) predictions of M learners
Learner = Callable[[Features, Floats, Floats, int], Learned]


class Ensemble:
    """A predictor of several learners, each of which leaves out another part of the pairs.

    So each pair is new to one learner, whose error on it says how wrong the ensemble is about new subnets.
    The variance of a measurement is how much the learners disagree about it, plus the mean squared error on
    the pairs that were left out. The methods are those of `predictors.accuracy.predictor.Predictor`.

    Args:
        learn: takes features (N, D), targets (N,), weights (M, N) that are 0 or 1, and a seed. It returns a
            function from features to the predictions (M, N) of the M learners.
    """

    def __init__(self, learn: Learner) -> None:
        self.learn = learn

    def fit(self, X: Features, y: Floats, seed: int) -> Self:
        self.seed_ = seed
        return self.update(X, y)

    def update(self, X: Features, y: Floats) -> Self:
        self.scale_ = Scale.of(y)
        t = self.scale_.to(y)
        # Learner m leaves out every fifth pair of a random order, starting with pair m.
        kept_MN = np.ones((LEARNERS, len(y)))
        order = numpy_generator(self.seed_, "left out").permutation(len(y))
        kept_MN[np.arange(len(y)) % LEARNERS, order] = 0
        self.model_ = self.learn(X, t, kept_MN, self.seed_)
        misses_MN = self.model_(X) - t
        self.error_ = float(np.mean(misses_MN[kept_MN == 0] ** 2))
        return self

    def predict(self, X: Features) -> tuple[Floats, Floats]:
        t_MN = self.model_(X)
        # The learners are averaged on the scale on which they learned.
        mean = self.scale_.back(t_MN.mean(axis=0))
        std = np.sqrt(t_MN.var(axis=0) + self.error_)
        return mean, self.scale_.back_std(mean, std)

    def mean(self, X: Features) -> Floats:
        return self.scale_.back(self.model_(X).mean(axis=0))


def boosting(X: Features, t: Floats, kept_MN: Floats, seed: int) -> Learned:
    """Fit gradient-boosted trees, one forest for each learner; see `Ensemble` for the arguments.

    By LightGBM (Ke et al., LightGBM: a highly efficient gradient boosting decision tree, 2017): as good as
    scikit-learn's histogram trees in a quarter of their time (docs/log.md).

    Raises:
        UserError: LightGBM cannot be loaded, because the system lacks OpenMP.
    """
    # It is imported here because it loads OpenMP of the system, which slim containers do not have. Only
    # boosting needs it, and boosting competes from 1,000 pairs on.
    try:
        import lightgbm
    except OSError as error:
        raise UserError(
            f"LightGBM cannot be loaded ({error}); install OpenMP (apt install libgomp1 or brew install "
            "libomp), or choose --predictor mlp."
        ) from None
    # Small trees of coarse bins: the defaults are for far more rows than a few hundred pairs.
    settings = {
        "objective": "regression",
        "learning_rate": 0.1,
        "num_leaves": 8,
        "min_data_in_leaf": 5,
        "min_data_in_bin": 1,
        "max_bin": 32,
        # With so few rows more threads only wait for each other.
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    forests = []
    for is_kept in kept_MN > 0:
        pairs = lightgbm.Dataset(X[is_kept], t[is_kept])
        forests.append(lightgbm.train(settings, pairs, num_boost_round=TREES))

    def predict(X: Features) -> Floats:
        return np.stack([np.asarray(forest.predict(X)) for forest in forests])

    return predict


def mlp(X: Features, t: Floats, kept_MN: Floats, seed: int) -> Learned:
    """Fit networks of two hidden layers (ReLU), one for each learner; see `Ensemble` for the arguments.

    AdamW trains all of them at once on all pairs in each step: one batched product computes a layer of all
    networks.
    """
    learners = len(kept_MN)
    center = X.mean(axis=0)
    spread = np.where(X.std(axis=0) > 0, X.std(axis=0), 1)  # a feature that never varies is only centred
    generator = torch_generator("cpu", seed, "mlp")
    sizes = [X.shape[1], HIDDEN, HIDDEN, 1]
    weights = []
    for inp, out in pairwise(sizes):
        weights.append(torch.randn(learners, inp, out, generator=generator) * 0.7 / inp**0.5)
    biases = [torch.zeros(learners, 1, out) for out in sizes[1:]]
    for tensor in (*weights, *biases):
        tensor.requires_grad_()

    def forward(X: Features) -> torch.Tensor:
        h = torch.from_numpy(((X - center) / spread).astype(np.float32)).expand(learners, -1, -1)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if i:
                h = h.relu()
            h = torch.baddbmm(bias, h, weight)
        return h.squeeze(-1)

    target_N = torch.from_numpy(t.astype(np.float32))
    is_kept_MN = torch.from_numpy(kept_MN.astype(np.float32))
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        # A pair that a learner leaves out has weight 0. The mean is over all learners, so it is multiplied by
        # their number: each learner then has the gradient of its own mean, as if it were trained alone.
        loss = ((forward(X) - target_N) ** 2 * is_kept_MN).mean().mul(learners)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    def predict(X: Features) -> Floats:
        with torch.no_grad():
            return forward(X).double().numpy()

    return predict
