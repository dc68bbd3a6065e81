"""What is known of measured subnets: each once, the best under a budget, the front."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from engine.errors import UserError
from ofa.cost import costs_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space
from predictors.accuracy.pairs import Pair
from predictors.search.constraints import Constraint
from predictors.selection.evaluations import Candidate, Evaluations, Prediction

IMAGES = 200


def macs_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 10, 1).macs


def params_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 10, 1).params


def at_most(space: Space, macs: float) -> list[Constraint]:
    return [Constraint("macs", macs, partial(macs_of, space))]


@pytest.fixture
def evaluations(tiny: Space) -> Evaluations:
    """20 pairs and 30 more subnets, with accuracies of few different values, so that there are ties."""
    rng = np.random.default_rng(0)
    rows = np.unique(sample_codes(tiny, 2_000, rng), axis=0)[:50]
    accuracies = {row.tobytes(): round(float(rng.random()), 1) for row in rows}

    def evaluate(rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> list[float]:
        return [accuracies.pop(row.tobytes()) for row in rows]  # a second measurement fails

    archs = [decode(tiny, row) for row in rows[:20]]
    known = Evaluations(
        tiny,
        IMAGES,
        [Pair(arch=a, val_accuracy=evaluate([encode(tiny, a)], [])[0], macs=1, params=1) for a in archs],
    )
    for row in rows[20:]:
        assert row not in known
        known.measure([row], evaluate, [Prediction(0.5, 0.1)])
        assert row in known
    assert len(known) == 50
    return known


def facts(evaluations: Evaluations, candidates: list[Candidate]) -> list[tuple[float, ...]]:
    rows = np.stack([c.row for c in candidates])
    return list(
        zip(
            [c.val_accuracy for c in candidates],
            macs_of(evaluations.space, rows),
            params_of(evaluations.space, rows),
            strict=True,
        )
    )


@pytest.mark.parametrize("names", [["macs"], ["macs", "params"]])
def test_front_is_what_nothing_beats(evaluations: Evaluations, names: list[str]) -> None:
    costs = {"macs": partial(macs_of, evaluations.space), "params": partial(params_of, evaluations.space)}
    everything = facts(evaluations, evaluations.under([]))
    front = facts(evaluations, evaluations.front({name: costs[name] for name in names}, []))
    for c in everything:
        beaten = any(
            o[0] >= c[0]
            and all(a <= b for a, b in zip(o[1 : 1 + len(names)], c[1:], strict=False))
            and o[: 1 + len(names)] != c[: 1 + len(names)]
            for o in everything
        )
        assert (c[: 1 + len(names)] in {f[: 1 + len(names)] for f in front}) != beaten
    assert [f[1] for f in front] == sorted(f[1] for f in front)


def test_best_under_every_budget_is_on_the_front(evaluations: Evaluations) -> None:
    front = facts(evaluations, evaluations.front({"macs": partial(macs_of, evaluations.space)}, []))
    for _, budget, _ in sorted(facts(evaluations, evaluations.under([])), key=lambda c: c[1]):
        found = facts(evaluations, evaluations.under(at_most(evaluations.space, budget)))
        assert max(c[1] for c in found) <= budget
        assert found[0][:2] == [c[:2] for c in front if c[1] <= budget][-1]


def test_ties_within_noise_go_to_the_cheaper_one(evaluations: Evaluations) -> None:
    space = evaluations.space
    budgets = sorted(c[1] for c in facts(evaluations, evaluations.under([])))
    cheaper = 0
    for budget in budgets:
        constraints = at_most(space, budget)
        best, chosen = evaluations.under(constraints)[0], evaluations.choose(constraints)
        assert evaluations.choose(constraints, 0.0).val_accuracy == best.val_accuracy
        assert chosen is not None
        noise = np.sqrt(best.val_accuracy * (1 - best.val_accuracy) / IMAGES)
        ties = [
            c for c in facts(evaluations, evaluations.under(constraints)) if c[0] >= best.val_accuracy - noise
        ]
        assert facts(evaluations, [chosen])[0][1] == min(c[1] for c in ties)
        cheaper += facts(evaluations, [chosen])[0][1] < facts(evaluations, [best])[0][1]
    assert evaluations.choose(at_most(space, budgets[0] - 1)) is None
    few = Evaluations(space, 4, [])
    small, large = encode(space, smallest(space)), encode(space, largest(space))
    few.add(small, 0.61, "select")
    few.add(large, 0.8, "select")
    chosen = few.choose(at_most(space, 1e9))
    assert chosen is not None and (chosen.row == small).all(), "4 images cannot tell 60% from 80%"
    many = Evaluations(space, 400, [])
    many.add(small, 0.6, "select")
    many.add(large, 0.8, "select")
    chosen = many.choose(at_most(space, 1e9))
    assert chosen is not None and (chosen.row == large).all()


def test_pairs_and_measurements_are_told_apart(evaluations: Evaluations) -> None:
    found = evaluations.under([])
    assert sum(c.source == "pairs" for c in found) == 20
    assert {(c.source, c.prediction) for c in found} == {("pairs", None), ("select", Prediction(0.5, 0.1))}
    codes, y = evaluations.training_set()
    assert codes.shape == (50, len(evaluations.space.columns)) and y.shape == (50,)


def test_too_few_to_learn_from(tiny: Space) -> None:
    with pytest.raises(
        UserError, match=r"Only 0 subnets .* predictors\.collect first, or search without .* coarse-to-fine"
    ):
        Evaluations(tiny, IMAGES, []).training_set()
