"""Which predictor competes, and which is taken."""

import numpy as np
import pytest

from predictors.accuracy.models import PREDICTORS
from predictors.accuracy.validation import candidates, compare_candidates, print_candidates


def test_who_competes_depends_on_the_number_of_pairs() -> None:
    assert [candidates("auto", n) for n in (29, 30, 2_001)] == [
        ("ridge",),
        ("gp", "ridge"),
        ("mlp", "ridge", "boosting"),
    ]
    assert set(candidates("auto", 2_000)) == {"gp", "ridge", "mlp", "boosting"}
    assert candidates("boosting", 12) == ("boosting",)
    assert {name for pairs in range(0, 3_000, 5) for name in candidates("auto", pairs)} <= set(PREDICTORS)


def test_auto_takes_what_predicts_best_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, (150, 10)).astype(np.float32)
    macs = rng.integers(10**6, 10**7, 150)
    crossed = 0.7 + 0.05 * (X[:, 0] != X[:, 1]) + 0.02 * X[:, 2:].sum(1) * X[:, 0] + rng.normal(0, 0.001, 150)
    found = compare_candidates("auto", X, crossed, macs, 0)
    assert [q.member for q in found] == ["gp", "ridge"] and found[0].tau > found[1].tau + 0.05
    print_candidates(found, crossed)
    out = capsys.readouterr().out
    assert "gp (chosen)" in out and f"{found[0].tau:.3f}" in out and "at similar MACs" in out
    noise = compare_candidates("ridge", X, rng.permutation(crossed), macs, 0)[0]
    assert abs(noise.tau) < 0.25


def test_subnets_that_measured_alike_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 2, (40, 10)).astype(np.float32), np.full(40, 0.5)
    found = compare_candidates("auto", X, y, rng.integers(10**6, 10**7, 40), 0)
    print_candidates(found, y)
    assert capsys.readouterr().out == "All 40 subnets measured alike: 50.00%. No predictor can rank them.\n"
    assert found[0].facts()["tau"] is None, "NaN is no JSON"


def test_many_pairs_are_judged_by_five_hundred() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, (5_000, 20)).astype(np.float32)
    y = 0.7 + X @ rng.normal(0, 0.01, 20)
    found = compare_candidates("ridge", X, y, rng.integers(10**6, 10**7, 5_000), 0)[0]
    assert found.tau > 0.95
