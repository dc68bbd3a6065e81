"""What is known of measured subnets: each once, the best under a budget, the front."""

from collections.abc import Sequence

import numpy as np
import pytest
from limits_of_macs import macs_of, params_of

from engine.errors import UserError
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space
from predictors.accuracy.pairs import Pair
from predictors.selection.evaluations import Candidate, Evaluations, Prediction

IMAGES = 200


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


def test_pairs_and_measurements_are_told_apart(evaluations: Evaluations) -> None:
    found = evaluations.under([])
    assert sum(c.source == "pairs" for c in found) == 20
    assert {(c.source, c.prediction) for c in found} == {("pairs", None), ("select", Prediction(0.5, 0.1))}
    codes, y = evaluations.training_set()
    assert codes.shape == (50, len(evaluations.space.columns)) and y.shape == (50,)


def test_too_few_to_learn_from(tiny: Space) -> None:
    with pytest.raises(
        UserError, match=r"Only 0 subnets .* with the same --run first, or search without .* coarse-to-fine"
    ):
        Evaluations(tiny, IMAGES, []).training_set()
