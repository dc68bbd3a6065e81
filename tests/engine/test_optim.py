"""Learning rates at the places that define them, and who is decayed."""

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
    import math

    epochs = 2.4 * math.log(0.05) / math.log(0.97)
    assert Exponential().floor_at == pytest.approx(epochs / 360, abs=0.01)


def test_warm_up_then_cosine() -> None:
    config = SGD(lr=1.0, schedule=Cosine())
    rates = [learning_rate(config, step, 110, 10) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_batch_norm_and_bias_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, free = build_sgd(SGD(weight_decay=0.1), model).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
