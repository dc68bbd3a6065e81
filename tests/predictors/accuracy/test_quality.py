"""Kendall's tau in bands of MACs, and which predictor is taken."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from predictors.accuracy.validation import candidates, compare, show, tau_in_bands


def test_bands_hold_subnets_of_similar_macs_only() -> None:
    rng = np.random.default_rng(0)
    y, predicted, macs = rng.normal(size=60), rng.normal(size=60), rng.integers(10**8, 10**9, 60)
    agree, mine, theirs = 0, 0, 0
    for i in range(60):
        for j in range(i):
            if abs(macs[i] - macs[j]) <= 10_000_000:
                agree += int(np.sign(y[i] - y[j]) * np.sign(predicted[i] - predicted[j]))
                mine, theirs = mine + 1, theirs + 1
    assert tau_in_bands(y, predicted, macs) == pytest.approx(agree / np.sqrt(mine * theirs))


def test_of_small_networks_bands_are_a_twentieth_of_the_range() -> None:
    rng = np.random.default_rng(0)
    macs = rng.integers(0, 400_000_000, 200)
    y, predicted = macs + rng.normal(0, 1e8, 200), macs.astype(float)
    small = tau_in_bands(y, predicted, macs // 1_000)
    assert small < kendalltau(y, predicted).statistic - 0.2
    assert small == tau_in_bands(y, predicted, macs // 10_000) != tau_in_bands(y, predicted, macs * 10)


def test_nothing_near_is_not_a_number() -> None:
    assert np.isnan(tau_in_bands(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.array([10**6, 10**9])))
    assert np.isnan(tau_in_bands(np.full(9, 0.5), np.arange(9.0), np.full(9, 10)))


def test_who_competes_depends_on_the_number_of_pairs() -> None:
    assert [candidates("auto", n) for n in (29, 30, 2_001)] == [
        ("ridge",),
        ("gp", "ridge"),
        ("mlp", "ridge", "boosting"),
    ]
    assert set(candidates("auto", 2_000)) == {"gp", "ridge", "mlp", "boosting"}
    assert candidates("boosting", 12) == ("boosting",)


def test_auto_takes_what_predicts_best_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, (150, 10)).astype(np.float32)
    macs = rng.integers(10**6, 10**7, 150)
    crossed = 0.7 + 0.05 * (X[:, 0] != X[:, 1]) + 0.02 * X[:, 2:].sum(1) * X[:, 0] + rng.normal(0, 0.001, 150)
    found = compare("auto", X, crossed, macs, 0)
    assert [q.member for q in found] == ["gp", "ridge"] and found[0].tau > found[1].tau + 0.05
    show(found, 150)
    out = capsys.readouterr().out
    assert "gp (chosen)" in out and f"{found[0].tau:.3f}" in out and "at similar MACs" in out
    noise = compare("ridge", X, rng.permutation(crossed), macs, 0)[0]
    assert abs(noise.tau) < 0.25


def test_many_pairs_are_judged_by_five_hundred() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, (5_000, 20)).astype(np.float32)
    y = 0.7 + X @ rng.normal(0, 0.01, 20)
    found = compare("ridge", X, y, rng.integers(10**6, 10**7, 5_000), 0)[0]
    assert found.tau > 0.95
