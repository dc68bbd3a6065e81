"""Learning rates at the places that define them, and who is decayed."""

import math
from itertools import pairwise

import pytest
from torch import nn

from engine.optim import SGD, Cosine, Exponential, build_sgd, learning_rate


def test_exponential_then_constant() -> None:
    config = SGD(lr=0.4, warmup_epochs=0, schedule=Exponential(floor=0.05, floor_at=0.5))
    rates = [learning_rate(config, step, 1000, 0) for step in range(1000)]
    assert rates[0] == 0.4
    assert rates[250] == pytest.approx(0.4 * 0.05**0.5)
    assert rates[500:] == pytest.approx([0.02] * 500)
    ratios = [b / a for a, b in pairwise(rates[:500])]
    assert ratios == pytest.approx([ratios[0]] * 499)


def test_default_floor_is_where_bignas_reaches_it() -> None:
    epochs = 2.4 * math.log(0.05) / math.log(0.97)
    assert Exponential().floor_at == pytest.approx(epochs / 360, abs=0.01)


def test_warm_up_then_cosine() -> None:
    config = SGD(lr=1.0, schedule=Cosine())
    rates = [learning_rate(config, step, 110, 10) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_the_cosine_of_attentive_nas_runs_over_all_steps_and_is_multiplied_by_the_warm_up() -> None:
    config = SGD(lr=1.6, warmup_start=0.001, schedule=Cosine(over_warmup=True))
    for step in (0, 1, 7, 10, 63, 109):
        warm = min(step / 10, 1)
        wanted = 1.6 * (0.001 * (1 - warm) + warm) * 0.5 * (1 + math.cos(math.pi * step / 110))
        assert learning_rate(config, step, 110, 10) == pytest.approx(wanted, rel=1e-12)


def test_the_warm_up_of_ofa_starts_at_the_rate_for_64_images_and_comes_before_the_cosine() -> None:
    single, full, steps = 0.03, 0.24, 4  # 8 times 64 images
    config = SGD(lr=full, warmup_start=single / full, schedule=Cosine())
    rates = [learning_rate(config, step, 125 * steps, 5 * steps) for step in range(125 * steps)]
    warm = [(step + 1) / (5 * steps) * (full - single) + single for step in range(5 * steps)]
    cosine = [0.5 * full * (1 + math.cos(math.pi * step / (120 * steps))) for step in range(120 * steps)]
    assert rates == pytest.approx(warm + cosine)


def test_batch_norm_and_bias_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, free = build_sgd(SGD(weight_decay=0.1), model).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
