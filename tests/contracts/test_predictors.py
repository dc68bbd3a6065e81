"""What every accuracy predictor must do."""

from typing import get_args

import numpy as np
import pytest
from forked import FORKED
from scipy.stats import kendalltau

from ofa.cost import costs_of
from ofa.space.codes import sample_codes
from ofa.space.space import load_space
from predictors.accuracy.features import features
from predictors.accuracy.models import PREDICTORS, make_predictor
from predictors.accuracy.validation import cross_validate
from predictors.select import Select

NAMES = tuple(PREDICTORS)
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def predictions() -> list[bytes]:
    """What every predictor that was fitted to 60 architectures says of 90."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (90, 12)).astype(np.float32)
    y = 0.7 + 0.01 * X.sum(1) + rng.normal(0, 0.002, 90)
    found = []
    for name in NAMES:
        said = make_predictor(name).fit(X[:60], y[:60], 3).predict(X)
        found.append(np.concatenate(said).tobytes())
    return found


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Features, accuracies and MACs of 1,200 architectures whose accuracy is additive in the choices, plus
    noise."""
    rng = np.random.default_rng(0)
    space = load_space("digits")
    codes = sample_codes(space, 1_200, rng)
    X = features(space, codes)
    effect = X @ (rng.normal(0, 1, X.shape[1]) / X.std(0).clip(0.1))
    return (
        X,
        0.8 + 0.03 * (effect - effect.mean()) / effect.std() + rng.normal(0, 0.005, len(X)),
        costs_of(space, codes, 10, 1).macs,
    )


def test_the_command_line_takes_every_one() -> None:
    assert get_args(Select.model_fields["predictor"].annotation) == ("auto", *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_held_out_architectures(name: str, problem: Problem) -> None:
    X, y, _ = problem
    predictor = make_predictor(name).fit(X[:150], y[:150], 0)
    mean, std = predictor.predict(X[150:])
    assert mean.shape == std.shape == (1_050,)
    assert kendalltau(mean, y[150:]).statistic > 0.5
    assert (std > 0).all()
    assert predictor.mean(X[150:]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [50, 100, 300])
@pytest.mark.parametrize("name", NAMES)
def test_intervals_cover_nine_of_ten_held_out_accuracies(name: str, pairs: int, problem: Problem) -> None:
    """On average of draws: with 50 pairs a single one may miss by ten points and be right to do so."""
    X, y, macs = problem
    covered = []
    for seed in range(4 if name in ("gp", "ridge") else 1):
        order = np.random.default_rng(seed).permutation(len(y))
        train, held = order[:pairs], order[pairs:]
        quality = cross_validate(name, X[train], y[train], macs[train], seed)
        mean, std = make_predictor(name).fit(X[train], y[train], seed).predict(X[held])
        covered.append(np.mean(np.abs(mean - y[held]) <= quality.half_width(std)))
    assert 0.8 < np.mean(covered) < 0.98


@pytest.mark.slow
def test_the_same_seed_gives_the_same_predictor_in_every_process() -> None:
    ours = predictions()
    with FORKED.Pool(1) as pool:
        assert pool.apply(predictions) == ours
    assert [len(said) for said in ours] == [8 * 180] * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_update_learns_from_new_pairs(name: str, problem: Problem) -> None:
    X, y, _ = problem
    predictor = make_predictor(name).fit(X[:40], y[:40], 0)
    before = kendalltau(predictor.mean(X[300:]), y[300:]).statistic
    after = kendalltau(predictor.update(X[:300], y[:300]).mean(X[300:]), y[300:]).statistic
    assert after > before


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_accuracies_are_no_error(name: str, value: float, problem: Problem) -> None:
    X, _, macs = problem
    y = np.full(20, value)
    mean, std = make_predictor(name).fit(X[:20], y, 0).predict(X)
    assert mean == pytest.approx(np.full(len(X), value), abs=1e-4)
    assert (std > 0).all() and (std < 0.01).all()
    assert np.isfinite(cross_validate(name, X[:20], y, macs[:20], 0).widening)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_few_pairs_give_numbers(name: str, pairs: int, problem: Problem) -> None:
    X, y, _ = problem
    mean, std = make_predictor(name).fit(X[:pairs], y[:pairs], 0).predict(X)
    assert ((mean >= 0) & (mean <= 1)).all() and (std > 0).all() and np.isfinite(std).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_that_never_varied_says_nothing(name: str, problem: Problem) -> None:
    X, y, _ = problem
    more = np.concatenate([X, np.ones((len(X), 1), np.float32)], axis=1)
    predictor = make_predictor(name).fit(more[:100], y[:100], 0)
    before = predictor.mean(more[100:])
    more[100:, -1] = 0
    assert predictor.mean(more[100:]) == pytest.approx(before, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_stay_near_what_was_measured(name: str, problem: Problem) -> None:
    X, y, _ = problem
    mean = make_predictor(name).fit(X[:100], y[:100], 0).mean(X)
    reach = np.ptp(y[:100])
    assert y[:100].min() - reach < mean.min() and mean.max() < min(1, y[:100].max() + reach)
