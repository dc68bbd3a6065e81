"""Choosing what to measure: the expected gain against simulation, and proposals on a known truth."""

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, encode, sample_codes
from ofa.space.space import Space
from predictors.accuracy.acquisition import expected_gain, front_steps, hypervolume, propose


def test_front_and_area() -> None:
    size, accuracy = np.array([1.0, 3.0, 2.0, 2.0, 4.0]), np.array([0.5, 0.6, 0.7, 0.4, 0.8])
    steps = front_steps(size, accuracy, 6.0)
    assert (steps.start.tolist(), steps.stop.tolist(), steps.level.tolist()) == (
        [1, 2, 4],
        [2, 4, 6],
        [0.5, 0.7, 0.8],
    )
    assert hypervolume(size, accuracy, 6.0) == pytest.approx(1 * 0.5 + 2 * 0.7 + 2 * 0.8)


@pytest.mark.slow
def test_expected_gain_is_what_simulated_measurements_gain() -> None:
    rng = np.random.default_rng(0)
    size, accuracy = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.7, 0.8])
    before = hypervolume(size, accuracy, 6.0)
    new, mean, std = (
        np.array([1.5, 3.0, 4.5, 6.0]),
        np.array([0.6, 0.69, 0.9, 0.9]),
        np.array([0.1, 0.05, 0.02, 0.1]),
    )
    found = expected_gain(new, mean, std, front_steps(size, accuracy, 6.0))
    for i in range(4):
        draws = rng.normal(mean[i], std[i], 20_000)
        gained = [hypervolume(np.append(size, new[i]), np.append(accuracy, a), 6.0) - before for a in draws]
        assert found[i] == pytest.approx(np.mean(gained), abs=4 * np.std(gained) / 20_000**0.5 + 1e-9)


def test_proposals_are_new_different_reproducible_and_better_than_random(tiny: Space) -> None:
    effect = np.random.default_rng(5).uniform(0, 0.05, len(tiny.columns))

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    def truth(rows: Codes) -> np.ndarray:
        return 0.3 + rows @ effect

    extremes = np.stack([encode(tiny, f(tiny)) for f in (smallest, largest)])
    rows = np.unique(np.concatenate([extremes, sample_codes(tiny, 40, np.random.default_rng(1))]), axis=0)
    known, others = rows[:30], sample_codes(tiny, 10, np.random.default_rng(2))
    found, again = (
        propose(tiny, macs, known, truth(known), 10, 0, np.random.default_rng(3)) for _ in range(2)
    )
    assert (found == again).all()
    assert len(np.unique(np.concatenate([known, found]), axis=0)) == len(known) + 10
    end = float(np.log(macs(extremes)).max())
    area = [
        hypervolume(np.log(macs(r)), truth(r), end)
        for r in (np.concatenate([known, new]) for new in (found, others))
    ]
    assert area[0] > area[1]


def test_a_small_space_runs_out(tiny: Space) -> None:
    everything = np.unique(sample_codes(tiny, 50_000, np.random.default_rng(0)), axis=0)
    known, y = everything[:-3], np.linspace(0.4, 0.6, len(everything) - 3)

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    assert len(propose(tiny, macs, known, y, 10, 0, np.random.default_rng(0))) <= 3
    assert (
        propose(
            tiny, macs, everything, np.linspace(0.4, 0.6, len(everything)), 10, 0, np.random.default_rng(0)
        ).shape[0]
        == 0
    )
