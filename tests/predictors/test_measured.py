"""What is known of measured subnets: each once, the best under a budget, the front."""

import numpy as np
import pytest

from engine.errors import UserError
from ofa.cost import costs_of
from ofa.space import Arch, Codes, Space, decode, encode, sample_codes
from predictors.measured import Measured
from predictors.pairs import Pair


@pytest.fixture
def measured(tiny: Space) -> Measured:
    """20 pairs and 30 more subnets, with accuracies of few different values, so that there are ties."""
    rng = np.random.default_rng(0)
    rows = np.unique(sample_codes(tiny, 2_000, rng), axis=0)[:50]
    accuracies = {decode(tiny, row): round(float(rng.random()), 1) for row in rows}

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    def accuracy(arch: Arch) -> float:
        return accuracies.pop(arch)  # a second measurement fails

    archs = [decode(tiny, row) for row in rows[:20]]
    known = Measured(tiny, macs, accuracy, [Pair(arch=a, val_accuracy=accuracy(a), macs=1, params=1) for a in archs])
    for row in rows[20:]:
        assert row not in known
        known.measure(row, 0.5, 0.1)
        assert row in known
    assert len(known) == 50
    return known


def test_front_is_what_nothing_beats(measured: Measured) -> None:
    everything, front = measured.under(10**12), measured.front()
    assert (np.diff([c.macs for c in front]) > 0).all() and (np.diff([c.val_accuracy for c in front]) > 0).all()
    for c in everything:
        beaten = any(o.macs <= c.macs and o.val_accuracy >= c.val_accuracy and (o.macs, o.val_accuracy) != (c.macs, c.val_accuracy)
                     for o in everything)  # fmt: skip
        assert ((c.macs, c.val_accuracy) in {(f.macs, f.val_accuracy) for f in front}) != beaten


def test_best_under_every_budget_is_on_the_front(measured: Measured) -> None:
    front = measured.front()
    for budget in sorted(c.macs for c in measured.under(10**12)):
        found = measured.under(budget)
        assert max(c.macs for c in found) <= budget
        assert (found[0].macs, found[0].val_accuracy) == [(c.macs, c.val_accuracy) for c in front if c.macs <= budget][-1]


def test_pairs_and_measurements_are_told_apart(measured: Measured) -> None:
    found = measured.under(10**12)
    assert sum(c.source == "pairs" for c in found) == 20
    assert {(c.source, c.predicted_accuracy, c.predicted_std) for c in found} == {("pairs", None, None), ("select", 0.5, 0.1)}
    codes, y = measured.training_set()
    assert codes.shape == (50, len(measured.space.columns)) and y.shape == (50,)


def test_macs_are_of_this_run_whatever_the_pair_says(measured: Measured, tiny: Space) -> None:
    for c in measured.under(10**12):
        assert c.macs == costs_of(tiny, encode(tiny, decode(tiny, c.row))[None], 10, 1).macs[0]


def test_too_few_to_learn_from(tiny: Space) -> None:
    with pytest.raises(UserError, match=r"Only 0 subnets .* predictors\.collect first, or search without .* coarse-to-fine"):
        Measured(tiny, lambda rows: np.zeros(len(rows), np.int64), lambda arch: 0.0, []).training_set()
