"""Squeeze-and-excitation: its widths, its names, and what a space's file may say of it."""

from typing import Any

import pytest
import torch

from engine.blocks.kind import BlockSpec
from engine.blocks.squeeze import Squeeze, SqueezeExcite
from engine.errors import UserError
from ofa.layers import layer_specs
from ofa.space.arch import largest
from ofa.space.space import Space
from predictors.latency.published import published_keys

EFFICIENTNET = {"of": "input", "ratio": 0.25, "divisor": 1, "act": "swish", "gate": "sigmoid"}


def with_se(se: Any) -> Space:
    stage = {"width": (16,), "depth": (1,), "kernel": (3,), "expand": (4,), "se": se}
    values = {"name": "x", "resolution": (16,), "stem": {"width": (24,)}, "stages": (stage,)}
    return Space.model_validate(values)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, 32),  # 120 / 4 = 30, to the nearest multiple of 8
        ({"divisor": 1}, 30),
        ({"of": "input", "divisor": 1}, 5),  # 20 / 4
        ({"of": "input", "ratio": 0.33, "divisor": 1}, 6),  # 6.6 is cut
        ({"of": "input", "divisor": 4}, 8),  # 4, the nearest multiple, would be under 90% of 5
    ],
)
def test_the_inner_width(settings: dict[str, Any], wanted: int) -> None:
    assert Squeeze.model_validate(settings).width(inputs=20, hidden=120) == wanted


def test_true_is_mobilenet_v3s_and_survives_a_file() -> None:
    assert with_se(True) == with_se({})
    assert with_se(False) == with_se(None)
    space = with_se(EFFICIENTNET)
    assert Space.model_validate_json(space.model_dump_json()) == space
    assert space != with_se(True)


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0}, {"ratio": 2}, {"divisor": 0}, {"gate": "tanh"}, {"off": 1}, "yes"]
)
def test_impossible_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="se"):
        with_se(wrong)


def test_it_is_what_torch_computes() -> None:
    torch.manual_seed(0)
    layer = SqueezeExcite(Squeeze.model_validate(EFFICIENTNET), 12, 5)
    x = torch.randn(2, 12, 4, 4)
    pooled = torch.nn.functional.silu(layer.reduce(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(layer(x), x * layer.restore(pooled).sigmoid())


def test_published_latency_tables_know_mobilenet_v3s_only() -> None:
    for se, known in ((True, True), (EFFICIENTNET, False)):
        space = with_se(se)
        block = layer_specs(space, largest(space), 5, 3)[1]
        assert isinstance(block, BlockSpec)
        if known:
            assert "-se:1" in published_keys(block)[0]
        else:
            with pytest.raises(UserError, match="no squeeze-and-excitation but that of MobileNetV3"):
                published_keys(block)
