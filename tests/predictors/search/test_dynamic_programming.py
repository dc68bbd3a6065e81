"""The front of an additive score against all architectures of spaces that are small enough."""

from itertools import product

import numpy as np
import pytest

from engine.statistics import Floats
from ofa.cost import costs_of
from ofa.space.codes import Codes, canonical, sample_codes, thermometer
from ofa.space.space import Space, load_space
from predictors.search.dynamic_programming import additive_fronts, fit_additive, layer_costs, merge_fronts


def small(granularity: str) -> Space:
    """Two elastic stages with depths, and kernels and expansions per stage or per block."""
    stage = {"depth": (1, 2, 3), "kernel": (3, 5), "expand": (2, 3), "stride": 2}
    stages = (
        {**stage, "width": (8, 16)},
        {**stage, "width": (8, 16, 24), "depth": (2, 3) if granularity == "stage" else (1, 2)},
    )
    stem, head = {"width": (4, 8), "stride": 1}, {"width": (16, 32), "expand": 2}
    return Space.model_validate(
        {
            "name": "small",
            "resolution": (8, 12),
            "granularity": granularity,
            "stem": stem,
            "stages": stages,
            "head": head,
        }
    )


def all_of(space: Space) -> Codes:
    """Every architecture once; blocks that are not there have no choices."""
    codes = np.array(list(product(*(range(1, n + 1) for n in space.cardinalities))), np.uint8)
    found = np.unique(canonical(space, codes), axis=0)
    assert len(found) == space.size()
    return found


def additive_over_stages(space: Space, rows: Codes) -> Floats:
    """Effects of all choices; in a stage, of depth and kernel together."""
    rng = np.random.default_rng(5)
    X = thermometer(space, rows)
    total = X @ rng.normal(0.5, 1, X.shape[1])
    for i in range(len(space.stages)):
        depth, kernel = (
            rows[:, space.column_index[field, space.slot(i, 0) if field == "kernel" else i]]
            for field in ("depth", "kernel")
        )
        total += 0.3 * depth.astype(float) * kernel
    return total


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["stage", "block"])
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_front_is_that_of_brute_force(granularity: str, cost: str) -> None:
    space = small(granularity)
    everything = all_of(space)
    parts = layer_costs(space, 10, 1)[cost]
    costs = getattr(costs_of(space, everything, 10, 1), cost)
    front = additive_fronts(
        space, lambda rows: additive_over_stages(space, rows), [parts], np.random.default_rng(0)
    )
    scores = additive_over_stages(space, everything)
    order = np.lexsort((-scores, costs))
    truth = everything[
        order[scores[order] > np.concatenate([[-np.inf], np.maximum.accumulate(scores[order])[:-1]])]
    ]
    assert len(truth) > 5
    assert np.array_equal(front, np.unique(truth, axis=0))


def test_nothing_above_the_limit_and_the_same_front_below() -> None:
    space = small("block")
    parts, rng = layer_costs(space, 10, 1)["macs"], np.random.default_rng(0)
    gains = fit_additive(space, lambda rows: additive_over_stages(space, rows), parts, rng)
    whole = merge_fronts(space, gains, parts)
    costs = costs_of(space, whole, 10, 1).macs
    assert (np.diff(costs) > 0).all() and (np.diff(additive_over_stages(space, whole)) > 0).all()
    for most in (costs[0], costs[len(costs) // 2], costs[-1]):
        assert np.array_equal(merge_fronts(space, gains, parts, most), whole[costs <= most])
    assert len(merge_fronts(space, gains, parts, costs[0] - 1)) == 0


@pytest.mark.parametrize(
    "name", ["digits", "bignas", "attentive_nas", "ofa_mbv3", "ofa_proxyless", "ofa_resnet50", "resnet18"]
)
def test_no_sample_beats_the_front_in_packaged_spaces(name: str) -> None:
    space = load_space(name)
    parts = layer_costs(space, 1000, 3)["macs"]
    front = additive_fronts(
        space, lambda rows: additive_over_stages(space, rows), [parts], np.random.default_rng(0)
    )
    rows = sample_codes(space, 2_000, np.random.default_rng(1))
    costs, scores = costs_of(space, front, 1000, 3).macs, additive_over_stages(space, front)
    best = np.array([scores[costs <= cost].max() for cost in costs_of(space, rows, 1000, 3).macs])
    assert (additive_over_stages(space, rows) <= best + 1e-6).all()
