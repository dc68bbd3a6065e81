"""The optimum of an additive score under several limits is that of brute force; costs are taken apart."""

from functools import partial

import numpy as np
import pytest
from small_spaces import additive_over_stages, all_of, small

from ofa.cost import costs_of, footprints_of
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space, load_space
from predictors.search.additive_optimum import Optimum, additive_limits, additive_optimum
from predictors.search.best import find_best
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn, fits
from predictors.search.decompose import decompose, groups_of_layers
from predictors.search.dynamic_programming import fit_additive

NAMES = ("macs", "params", "size", "memory", "latency")


def cost(space: Space, name: str, rows: Codes) -> np.ndarray:
    """Any cost; the latency is made up, and other choices are cheap in it than in MACs."""
    if name in ("size", "memory"):
        footprint = footprints_of(space, rows, 10, 3)
        return footprint.file if name == "size" else footprint.memory
    costs = costs_of(space, rows, 10, 3)
    if name == "latency":
        kernels = [i for i, column in enumerate(space.columns) if column.field == "kernel"]
        return costs.macs / 1e6 + 0.3 * rows[:, kernels].astype(float).sum(axis=1)
    return costs.macs if name == "macs" else costs.params


def limited(space: Space, rows: Codes, shares: dict[str, float]) -> list[Constraint]:
    """Each cost limited to a quantile of what `rows` cost."""
    limits = []
    for name, share in shares.items():
        of_name: ArchCostFn = partial(cost, space, name)
        limits.append(Constraint(name, float(np.quantile(of_name(rows), share)), of_name))
    return limits


def optimum(space: Space, score: ScoreFn, limits: list[Constraint]) -> Optimum:
    groups = groups_of_layers(space)
    gains = fit_additive(space, score, groups, np.random.default_rng(0))
    return additive_optimum(space, gains, groups, additive_limits(space, limits))


@pytest.mark.parametrize("granularity", ["stage", pytest.param("block", marks=pytest.mark.slow)])
def test_optimum_is_that_of_brute_force(granularity: str) -> None:
    space = small(granularity)
    everything, score = all_of(space), partial(additive_over_stages, space)
    scores = score(everything)
    sets: list[dict[str, float]] = [
        {},
        {"macs": 0.3},
        {"macs": 0.5, "params": 0.3},
        {"macs": 0.4, "latency": 0.1, "params": 0.5},
        {"params": 0.05, "latency": 0.05},
        {"memory": 0.3},
        {"macs": 0.6, "size": 0.3, "memory": 0.4, "latency": 0.5},
    ]
    for shares in sets:
        limits = limited(space, everything, shares)
        best = scores[fits(limits, everything)].max()
        found = optimum(space, score, limits)
        assert found.is_proven
        assert fits(limits, found.rows).all()
        # Scores of few and of many architectures may differ in the last digit.
        assert score(found.rows[:1])[0] == pytest.approx(best, abs=1e-12)
        searched = find_best(space, score, limits, np.random.default_rng(0))
        assert score(searched[:1])[0] == pytest.approx(best, abs=1e-12)


def test_nothing_where_no_architecture_keeps_the_limits() -> None:
    space = small("stage")
    rows = all_of(space)
    limits = limited(space, rows, {"macs": 0.0, "params": 0.0})
    limits[0] = limits[0]._replace(limit=limits[0].limit - 1)
    assert len(optimum(space, partial(additive_over_stages, space), limits).rows) == 0


@pytest.mark.slow
def test_no_loss_under_joint_limits_with_every_resolution() -> None:
    space = load_space("ofa_mbv3")
    score = partial(additive_over_stages, space)
    rows = sample_codes(space, 2_000, np.random.default_rng(0))
    limits = limited(space, rows, {"macs": 0.3, "latency": 0.3, "params": 0.3})
    proven = optimum(space, score, limits)
    assert proven.is_proven and fits(limits, proven.rows).all()
    found = find_best(space, score, limits, np.random.default_rng(0))
    assert score(found[:1])[0] == pytest.approx(score(proven.rows[:1])[0], abs=1e-9)
    # Good architectures of other resolutions are there for a score that is not additive.
    assert len(np.unique(proven.rows[:, 0])) > 10


@pytest.mark.parametrize("name", ["digits", "attentive_nas", "ofa_mbv3"])
def test_costs_are_taken_apart_as_sums_and_memory_as_a_maximum(name: str) -> None:
    space = load_space(name)
    rows = sample_codes(space, 200, np.random.default_rng(1))
    for kind in NAMES:
        found = decompose(space, partial(cost, space, kind))
        assert found
        entries = []
        for part in found.parts:
            entries.append(part.cost[tuple(np.maximum(rows[:, list(part.columns)], 1).T - 1)])
        total = np.max(entries, axis=0) if found.is_maximum else np.sum(entries, axis=0)
        # The stem of attentive_nas needs most memory whatever follows, so there it is a sum as well.
        assert found.is_maximum == (kind == "memory") or name == "attentive_nas"
        np.testing.assert_allclose(total, cost(space, kind, rows), rtol=1e-9)


def test_neither_a_sum_nor_a_maximum() -> None:
    space = load_space("digits")

    def root(rows: Codes) -> np.ndarray:
        return np.sqrt(cost(space, "macs", rows))

    assert decompose(space, root) is None
    # Such a limit is left to the search, which still keeps it.
    limit = Constraint(
        "latency", float(np.median(root(sample_codes(space, 99, np.random.default_rng(0))))), root
    )
    found = find_best(space, partial(additive_over_stages, space), [limit], np.random.default_rng(0))
    assert len(found) and fits([limit], found).all()


def test_a_resolution_without_latency_is_left_out() -> None:
    space = small("stage")
    everything, score = all_of(space), partial(additive_over_stages, space)

    def latency(rows: Codes) -> np.ndarray:
        return np.where(rows[:, 0] == 1, np.inf, cost(space, "latency", rows))

    limit = Constraint("latency", float(np.quantile(cost(space, "latency", everything), 0.5)), latency)
    found = optimum(space, score, [limit])
    assert found.is_proven and fits([limit], found.rows).all()
    best = score(everything)[fits([limit], everything)].max()
    assert score(found.rows[:1])[0] == pytest.approx(best, abs=1e-12)
