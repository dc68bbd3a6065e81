"""Coarse-to-fine selection: the grid, its edge, and measured subnets that keep the number and the budget."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, canonical, decode, encode, sample_codes
from ofa.space.space import Space, load_space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.pairs import Pair
from predictors.search.constraints import Constraint
from predictors.selection.coarse_to_fine import LEVELS, coarse, coarse_grid, coarse_to_fine, edge
from predictors.selection.evaluations import Evaluations


class Oracle:
    """A known accuracy for every architecture, and what was asked of it."""

    def __init__(self, space: Space) -> None:
        self.space, self.asked = space, list[Arch]()
        self.weight = np.random.default_rng(5).uniform(
            0, 0.01, features(space, encode(space, largest(space))[None]).shape[1]
        )

    def accuracies(self, rows: Codes) -> np.ndarray:
        return features(self.space, rows) @ self.weight

    def accuracy(self, arch: Arch) -> float:
        self.asked.append(arch)
        return float(self.accuracies(encode(self.space, arch)[None])[0])

    def evaluate(self, rows: Sequence[Codes], predictions: object) -> list[float]:
        return [self.accuracy(decode(self.space, row)) for row in rows]

    def macs(self, rows: Codes) -> np.ndarray:
        return costs_of(self.space, rows, 10, 1).macs

    def at_most(self, budget: float) -> list[Constraint]:
        return [Constraint("macs", budget, self.macs)]

    def search(self, budget: int, count: int, seed: int, pairs: list[Pair]) -> Evaluations:
        evaluations = Evaluations(self.space, 1_000, pairs)
        rng = np.random.default_rng(seed)
        coarse_to_fine(evaluations, self.at_most(budget), count, rng, self.evaluate)
        return evaluations


@pytest.mark.parametrize("name", ["digits", "bignas", "attentive_nas", "ofa_mbv3", "ofa_resnet50"])
def test_in_the_grid_all_stages_move_together(name: str) -> None:
    space = load_space(name)
    grid, shape = coarse_grid(space)
    assert len(np.unique(grid, axis=0)) == len(grid) == np.prod(shape)
    assert (grid[0] == encode(space, smallest(space))).all() and (
        grid[-1] == encode(space, largest(space))
    ).all()
    fields = dict.fromkeys(c.field for c in space.columns)
    choices = {f: max(len(c.values) for c in space.columns if c.field == f) for f in fields}
    assert shape == tuple(min(LEVELS, n) for n in choices.values())
    for field in choices:
        columns = [
            i for i, c in enumerate(space.columns) if c.field == field and len(c.values) == choices[field]
        ]
        seen = grid[:, columns]
        assert all(len(np.unique(row[row > 0])) <= 1 for row in seen)


def test_edge_is_what_cannot_be_raised() -> None:
    fits = np.add.outer(np.add.outer([0, 1, 2, 5], [0, 3, 4]), [0, 2]) <= 5
    for point in product(*map(range, fits.shape)):
        above = [tuple(p + (axis == a) for a, p in enumerate(point)) for axis in range(3)]
        stuck = not any(
            fits[n] for n in above if all(i < size for i, size in zip(n, fits.shape, strict=True))
        )
        assert edge(fits)[point] == (fits[point] and stuck)
    assert edge(np.ones((2, 3), bool)).sum() == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_keeps_budget_and_number_and_is_reproducible(tiny: Space, share: float, count: int) -> None:
    oracle = Oracle(tiny)
    least, most = oracle.macs(np.stack([encode(tiny, smallest(tiny)), encode(tiny, largest(tiny))]))
    budget = int(least + share * (most - least))
    found = oracle.search(budget, count, 0, []).under([])
    assert 1 <= len(found) <= count
    assert oracle.macs(np.stack([c.row for c in found])).max() <= budget
    assert len(set(oracle.asked)) == len(oracle.asked) == len(found)
    assert smallest(tiny) in oracle.asked or count < 3
    again = oracle.search(budget, count, 0, []).under([])
    assert [c.row.tolist() for c in again] == [c.row.tolist() for c in found]


def test_what_is_known_is_not_measured_and_may_be_mutated(tiny: Space) -> None:
    oracle = Oracle(tiny)
    everything = np.unique(
        canonical(tiny, np.array(list(product(*(range(1, n + 1) for n in tiny.cardinalities))), np.uint8)),
        axis=0,
    )
    budget = int(np.median(oracle.macs(everything)))
    known = [decode(tiny, row) for row in everything[::2]]
    pairs = [Pair(arch=a, val_accuracy=oracle.accuracy(a), macs=1, params=1) for a in known]
    oracle.asked.clear()
    evaluations = oracle.search(budget, 400, 0, pairs)
    assert not set(known) & set(oracle.asked)
    fits = everything[oracle.macs(everything) <= budget]
    best = evaluations.under(oracle.at_most(budget))[0]
    assert best.val_accuracy == pytest.approx(oracle.accuracies(fits).max())


def test_mutants_improve_on_the_grid(tiny: Space) -> None:
    space = load_space("attentive_nas")
    oracle = Oracle(space)
    for budget in (300_000_000, 600_000_000):
        grid = coarse(space, oracle.at_most(budget))
        found = oracle.search(budget, 60, 0, []).under(oracle.at_most(budget))
        assert len(found) == 60
        assert found[0].val_accuracy > oracle.accuracies(grid).max()


def test_better_than_as_many_random_subnets_on_imagenet(imagenet: tuple[Space, Codes, np.ndarray]) -> None:
    """By a Gaussian process of measured OFA subnets."""
    space, codes, y = imagenet
    model = GaussianProcess().fit(features(space, codes[:150]), y[:150], 0)

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 1000, 3).macs

    def evaluate(rows: Sequence[Codes], predictions: object) -> list[float]:
        return list(model.mean(features(space, np.stack(rows)))) if len(rows) else []

    gains = []
    for budget in (200_000_000, 250_000_000, 300_000_000, 400_000_000):
        evaluations, limits = Evaluations(space, 1_000, []), [Constraint("macs", budget, macs)]
        coarse_to_fine(evaluations, limits, 20, np.random.default_rng(0), evaluate)
        samples = sample_codes(space, 20_000, np.random.default_rng(0))
        random = samples[macs(samples) <= budget][:20]
        assert len(evaluations) == len(random) == 20
        best = evaluations.under(limits)[0].val_accuracy
        gains.append(best - model.predict(features(space, random))[0].max())
    assert np.mean(gains) > 0.001
