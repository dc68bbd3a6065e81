"""The front of an additive score against all architectures of spaces that are small enough."""

from functools import partial

import numpy as np
import pytest
from small_spaces import additive_over_stages, all_of, small

from ofa.cost import costs_of
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space, load_space
from predictors.search.constraints import ArchCostFn
from predictors.search.decompose import decompose
from predictors.search.dynamic_programming import fit_additive, merge_fronts


def front_of(space: Space, cost: ArchCostFn) -> Codes:
    """The front of an additive score against a cost."""
    found = decompose(space, cost)
    assert found
    score = partial(additive_over_stages, space)
    return merge_fronts(space, fit_additive(space, score, found.parts, np.random.default_rng(0)), found.parts)


def cost_of(space: Space, classes: int, channels: int, name: str, rows: Codes) -> np.ndarray:
    return getattr(costs_of(space, rows, classes, channels), name)


def brute_force(space: Space, rows: Codes, costs: np.ndarray) -> Codes:
    """The front of the same score among `rows`."""
    scores = additive_over_stages(space, rows)
    order = np.lexsort((-scores, costs))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(scores[order])[:-1]])
    return np.unique(rows[order[scores[order] > best_before]], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["stage", "block"])
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_front_is_that_of_brute_force(granularity: str, cost: str) -> None:
    space = small(granularity)
    everything = all_of(space)
    function = partial(cost_of, space, 10, 1, cost)
    front, truth = front_of(space, function), brute_force(space, everything, function(everything))
    assert (np.diff(function(front)) > 0).all() and (np.diff(additive_over_stages(space, front)) > 0).all()
    assert len(truth) > 5
    assert np.array_equal(np.unique(front, axis=0), truth)


def test_what_has_no_cost_is_on_no_front() -> None:
    """Infinite latencies of a resolution that a table does not cover made not-a-number of all other costs."""
    space = small("stage")
    everything = all_of(space)

    def latency(rows: Codes) -> np.ndarray:
        return np.where(rows[:, 0] == 1, np.inf, cost_of(space, 10, 1, "macs", rows))

    known = everything[everything[:, 0] != 1]
    truth = brute_force(space, known, latency(known))
    assert np.array_equal(np.unique(front_of(space, latency), axis=0), truth)


@pytest.mark.parametrize(
    "name", ["digits", "bignas", "attentive_nas", "ofa_mbv3", "ofa_proxyless", "ofa_resnet50", "resnet18"]
)
def test_no_sample_beats_the_front_in_packaged_spaces(name: str) -> None:
    space = load_space(name)
    front = front_of(space, partial(cost_of, space, 1000, 3, "macs"))
    rows = sample_codes(space, 2_000, np.random.default_rng(1))
    costs, scores = costs_of(space, front, 1000, 3).macs, additive_over_stages(space, front)
    best = np.array([scores[costs <= cost].max() for cost in costs_of(space, rows, 1000, 3).macs])
    assert (additive_over_stages(space, rows) <= best + 1e-6).all()
