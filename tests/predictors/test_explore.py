"""The search finds the known optimum of problems small enough to enumerate, and never leaves the budget."""

from itertools import product

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space import Codes, Space, canonical, encode, features, largest, load_space, sample_codes, smallest
from predictors.explore import FRONT, OFA, PER_BUDGET, Evolution, evolve, evolve_front


@pytest.fixture
def everything(tiny: Space) -> Codes:
    return np.unique(canonical(tiny, np.array(list(product(*(range(1, n + 1) for n in tiny.cardinalities))), np.uint8)), axis=0)


def score_of(space: Space) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 1, features(space, encode(space, largest(space))[None]).shape[1])


@pytest.mark.parametrize("settings", [PER_BUDGET, OFA])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_evolution_finds_the_best_feasible_architecture(tiny: Space, everything: Codes, share: float, settings: Evolution) -> None:
    weight = score_of(tiny)

    def score(rows: Codes) -> np.ndarray:
        return features(tiny, rows) @ weight

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    least, most = macs(everything).min(), macs(everything).max()
    budget = int(least + share * (most - least))
    found = evolve(tiny, score, macs, budget, np.random.default_rng(0), settings)
    assert (macs(found) <= budget).all()
    assert len(np.unique(found, axis=0)) == len(found)
    assert score(found)[0] == pytest.approx(score(everything[macs(everything) <= budget]).max())
    assert (np.diff(score(found)) <= 0).all()


def test_front_evolution_finds_the_best_at_every_budget(tiny: Space, everything: Codes) -> None:
    weight, asked = score_of(tiny), 0

    def score(rows: Codes) -> np.ndarray:
        nonlocal asked
        asked += len(rows)
        return features(tiny, rows) @ weight

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    budgets = tuple(int(b) for b in np.quantile(macs(everything), [0, 0.1, 0.3, 0.6, 0.9]))
    found = evolve_front(tiny, score, macs, budgets, np.random.default_rng(0))
    assert len(np.unique(found, axis=0)) == len(found) == asked <= FRONT.predictions, "each is scored once"
    assert macs(found).max() <= max(budgets)
    assert (np.diff(score(found)) <= 0).all()
    for budget in budgets:
        assert score(found[macs(found) <= budget])[0] == pytest.approx(score(everything[macs(everything) <= budget]).max())


def test_front_evolution_with_the_smallest_architecture_alone(tiny: Space) -> None:
    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    least = encode(tiny, smallest(tiny))
    found = evolve_front(tiny, lambda rows: np.zeros(len(rows)), macs, (int(macs(least[None])[0]),), np.random.default_rng(0))
    assert (found == least).all() and len(found) == 1


def test_front_evolution_reaches_beyond_what_samples_cost() -> None:
    space = load_space("attentive_nas")

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows).macs

    found = evolve_front(space, lambda rows: macs(rows) / 1e9, macs, (10**12,), np.random.default_rng(0))
    assert macs(found[:1])[0] > macs(sample_codes(space, 100_000, np.random.default_rng(1))).max()


@pytest.mark.parametrize("space", ["attentive_nas", "ofa_mbv3"])
def test_one_front_evolution_is_nearly_as_good_as_one_for_each_budget(space: str) -> None:
    """With a third of their predictions; what is left between them is small against what choosing at random leaves."""
    named = load_space(space)
    weight = np.abs(np.random.default_rng(0).normal(0, 1, features(named, encode(named, largest(named))[None]).shape[1]))

    def score(rows: Codes) -> np.ndarray:
        return features(named, rows) @ weight

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(named, rows).macs

    samples = sample_codes(named, 4_096, np.random.default_rng(1))
    budgets = tuple(int(b) for b in np.quantile(macs(samples), [0.01, 0.1, 0.5, 0.9]))
    front = evolve_front(named, score, macs, budgets, np.random.default_rng(0), FRONT._replace(generations=60))
    for budget in budgets:
        best = score(evolve(named, score, macs, budget, np.random.default_rng(0))[:1])[0]
        random = score(samples[macs(samples) <= budget]).max()
        assert score(front[macs(front) <= budget][:1])[0] > best - 0.2 * (best - random)
