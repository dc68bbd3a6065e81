"""Resolutions that start behind are not given up."""

import numpy as np

from ofa.cost import costs_of
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import load_space
from predictors.search.best import find_best
from predictors.search.constraints import Constraint
from predictors.search.evolution import OURS, evolve, global_columns
from predictors.search.front import find_front
from predictors.search.pool import Pool

SPACE = load_space("ofa_mbv3")
GOOD = 9  # code of the resolution at which the best architecture is
BUDGET = 250e6
# Kernels of blocks that every architecture has: the first two of each elastic stage.
KERNELS = [
    SPACE.column_index["kernel", SPACE.slot(stage, block)] for stage in range(1, 6) for block in (0, 1)
]


def deceptive(rows: Codes) -> np.ndarray:
    """Small kernels are better; at one resolution large ones are, and only all together make up for it."""
    largest = (rows[:, KERNELS] == 3).sum(axis=1)
    smallest = (rows[:, KERNELS] == 1).sum(axis=1)
    elsewhere = 1.0 + 0.1 * smallest - 0.001 * rows[:, 0]
    return np.where(rows[:, 0] == GOOD, 0.3 * largest - 0.5, elsewhere)


def macs(rows: Codes) -> np.ndarray:
    return costs_of(SPACE, rows, 1000, 3).macs


def test_the_best_resolution_starts_behind_and_is_found() -> None:
    limit = Constraint("macs", BUDGET, macs)
    found = find_best(SPACE, deceptive, [limit], np.random.default_rng(0))
    assert deceptive(found[:1])[0] == 2.5 and found[0, 0] == GOOD
    start = sample_codes(SPACE, 2_000, np.random.default_rng(0))
    alone = evolve(SPACE, deceptive, [limit], np.random.default_rng(0), start)
    assert (alone.rows[:, 0] != GOOD).all(), "without shares the parents lose it"
    assert alone.scores.max() < 2.5
    shared = evolve(SPACE, deceptive, [limit], np.random.default_rng(0), start, OURS, global_columns(SPACE))
    assert len(np.unique(shared.rows[:, 0])) == len(SPACE.resolution)


def test_a_front_keeps_it_as_well() -> None:
    none = np.empty((0, len(SPACE.columns)), np.uint8)
    front = find_front(
        SPACE, deceptive, [macs], [Constraint("macs", BUDGET, macs)], np.random.default_rng(0), none
    )
    assert deceptive(front).max() == 2.5


def test_every_choice_keeps_its_best() -> None:
    rows = sample_codes(SPACE, 1_000, np.random.default_rng(0))
    scores = rows[:, 0].astype(float)  # the higher the resolution, the better
    pool = Pool(rows, scores, np.zeros(len(rows)))
    assert set(pool.best(100).rows[:, 0]) < set(rows[:, 0])
    spread = pool.spread(100, global_columns(SPACE))
    assert set(spread.rows[:, 0]) == set(rows[:, 0])
    assert len(spread.rows) <= 100 and (np.diff(spread.scores) <= 0).all()
