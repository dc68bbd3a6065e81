"""Objectives are explored on their own: order and company change nothing."""

from collections.abc import Sequence

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.codes import Codes, decode, sample_codes
from ofa.space.space import Space
from predictors.accuracy.features import features
from predictors.accuracy.pairs import Pair
from predictors.search.constraints import Constraint, Objective
from predictors.selection.evaluations import Evaluations, Prediction
from predictors.selection.exploration import estimate_all, explore_by_predictions, make_guide
from predictors.selection.posterior import Estimate


def select_each(space: Space, budgets: Sequence[int]) -> dict[int, list[Estimate]]:
    """Explore budgets in this order, with one guide and made-up accuracies."""
    known = np.unique(sample_codes(space, 40, np.random.default_rng(1)), axis=0)
    weight = np.random.default_rng(0).uniform(0, 0.01, features(space, known).shape[1])

    def accuracies(rows: Codes) -> np.ndarray:
        return 0.5 + features(space, rows) @ weight

    def evaluate(rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> list[float]:
        return accuracies(np.stack(rows)).tolist()

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 10, 1).macs

    pairs = []
    for row, accuracy in zip(known, accuracies(known), strict=True):
        pairs.append(Pair(arch=decode(space, row), val_accuracy=float(accuracy), macs=1, params=1))
    guide = make_guide("ridge", Evaluations(space, 500, pairs), macs, 0)
    found = {}
    for budget in budgets:
        objective = Objective.best([Constraint("macs", budget, macs)])
        evaluations = Evaluations(space, 500, pairs)
        explore_by_predictions(evaluations, objective, guide, 6, 0, evaluate)
        found[budget] = estimate_all(evaluations, {}, "ridge", 0)
    return found


@pytest.mark.slow
def test_a_budget_is_explored_alike_in_any_company(tiny: Space) -> None:
    alone = select_each(tiny, [60_000])[60_000]
    after = select_each(tiny, [100_000, 60_000])[60_000]
    assert sum(estimate.candidate.source == "select" for estimate in alone) == 6
    for one, other in zip(alone, after, strict=True):
        assert one.candidate.row.tobytes() == other.candidate.row.tobytes()
        assert one.candidate.prediction == other.candidate.prediction
        assert one[1:] == other[1:]
