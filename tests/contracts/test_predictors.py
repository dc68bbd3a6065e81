"""What every accuracy predictor must do."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from ofa.space import features, load_space, sample_codes
from predictors.accuracy import Name, cross_validated_tau, make_predictor

MEMBERS: list[Name] = ["gp", "ridge"]


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """200 architectures whose accuracy is additive in the choices, plus noise."""
    rng = np.random.default_rng(0)
    space = load_space("digits")
    X = features(space, sample_codes(space, 200, rng))
    return X, 0.8 + X @ rng.normal(0, 0.01, X.shape[1]) + rng.normal(0, 0.005, len(X))


@pytest.mark.parametrize("name", MEMBERS)
def test_ranks_held_out_architectures(name: Name, problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    mean, std = make_predictor(name, 150).fit(X[:150], y[:150], 0).predict(X[150:])
    assert mean.shape == std.shape == (50,)
    assert kendalltau(mean, y[150:]).statistic > 0.7
    assert (std > 0).all()
    assert 0.6 < np.mean(np.abs(mean - y[150:]) < 1.645 * std) <= 1


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_seed_gives_the_same_predictor(name: Name, problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    a, b = (make_predictor(name, 100).fit(X[:100], y[:100], 3).predict(X) for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("name", MEMBERS)
def test_update_learns_from_new_pairs(name: Name, problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    predictor = make_predictor(name, 40).fit(X[:40], y[:40], 0)
    before = kendalltau(predictor.predict(X[150:])[0], y[150:]).statistic
    after = kendalltau(predictor.update(X[:150], y[:150]).predict(X[150:])[0], y[150:]).statistic
    assert after > before


@pytest.mark.parametrize("name", MEMBERS)
def test_constant_accuracies_are_no_error(name: Name, problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = problem
    mean, _ = make_predictor(name, 20).fit(X[:20], np.full(20, 0.5), 0).predict(X)
    assert mean == pytest.approx(np.full(200, 0.5))


def test_cross_validation_sees_signal_and_noise(problem: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = problem
    assert cross_validated_tau("auto", X, y, 0) > 0.7
    assert abs(cross_validated_tau("ridge", X, np.random.default_rng(1).permutation(y), 0)) < 0.25
