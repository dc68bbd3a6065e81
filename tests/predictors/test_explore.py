"""The search finds the known optimum of problems small enough to enumerate, and never leaves the budget."""

from itertools import product
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ofa.cost import costs_of
from ofa.space import Codes, Space, canonical, encode, features, largest, smallest
from predictors.explore import evolve
from predictors.study import study


@pytest.fixture
def everything(tiny: Space) -> Codes:
    return np.unique(canonical(tiny, np.array(list(product(*(range(1, n + 1) for n in tiny.cardinalities))), np.uint8)), axis=0)


def score_of(space: Space) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 1, features(space, encode(space, largest(space))[None]).shape[1])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_evolution_finds_the_best_feasible_architecture(tiny: Space, everything: Codes, share: float) -> None:
    weight = score_of(tiny)

    def score(rows: Codes) -> np.ndarray:
        return features(tiny, rows) @ weight

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    least, most = macs(everything).min(), macs(everything).max()
    budget = int(least + share * (most - least))
    found = evolve(tiny, score, macs, budget, np.random.default_rng(0))
    assert (macs(found) <= budget).all()
    assert len(np.unique(found, axis=0)) == len(found)
    assert score(found)[0] == pytest.approx(score(everything[macs(everything) <= budget]).max())
    assert (np.diff(score(found)) <= 0).all()


def test_study_starts_from_the_seeds_keeps_the_constraint_and_can_be_opened(tiny: Space, tmp_path: Path) -> None:
    weight = score_of(tiny)
    journal = tmp_path / "optuna.journal"

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    seeds = np.stack([encode(tiny, smallest(tiny)), encode(tiny, largest(tiny))])
    budget = int(macs(seeds).mean())
    for _ in range(2):  # a study of the same name is replaced
        found = study(tiny, lambda rows: features(tiny, rows) @ weight, macs, budget, seeds, 20, journal, "flops-1M", 0)
    assert (macs(found) <= budget).all()
    assert (found == seeds[0]).all(1).any()
    opened = optuna.load_study(study_name="flops-1M", storage=JournalStorage(JournalFileBackend(str(journal))))
    assert len(opened.trials) == 20
    assert opened.trials[0].params["width[0]"] == 4
    assert (macs(seeds)[1] > budget) and opened.trials[1].constraints["macs"] > 0
