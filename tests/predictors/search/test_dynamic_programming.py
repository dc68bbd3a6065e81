"""The front of an additive score against all architectures of spaces that are small enough."""

import numpy as np
import pytest
from small_spaces import additive_over_stages, all_of, small

from ofa.cost import costs_of
from ofa.space.codes import sample_codes
from ofa.space.space import load_space
from predictors.search.dynamic_programming import additive_fronts, fit_additive, layer_costs, merge_fronts


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
