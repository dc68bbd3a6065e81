"""How well the predictors do on measured ImageNet accuracies of OFA subnets."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from ofa.space import Codes, Space, features
from predictors.accuracy import GaussianProcess, Ridge, make_predictor


def test_auto_chooses_by_the_number_of_pairs() -> None:
    assert [type(make_predictor("auto", n)) for n in (10, 30, 2000, 2001)] == [Ridge, GaussianProcess, GaussianProcess, Ridge]


def test_hundred_measured_subnets_rank_imagenet_accuracy(imagenet: tuple[Space, Codes, np.ndarray]) -> None:
    space, codes, y = imagenet
    X = features(space, codes)
    order = np.random.default_rng(0).permutation(len(y))
    train, held = order[:100], order[100:500]
    mean, _ = GaussianProcess().fit(X[train], y[train], 0).predict(X[held])
    assert kendalltau(mean, y[held]).statistic == pytest.approx(0.93, abs=0.03)
