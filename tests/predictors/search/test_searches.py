"""The search finds the known optimum of problems small enough to enumerate, keeps every limit, and is never
worse than OFA's."""

import numpy as np
import pytest

from engine.statistics import Floats, pareto_front
from ofa.cost import costs_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, encode, sample_codes, thermometer
from ofa.space.space import Space, load_space
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.search.best import find_best, nearest_feasible
from predictors.search.constraints import Constraint
from predictors.search.decompose import decompose
from predictors.search.dynamic_programming import fit_additive, merge_fronts
from predictors.search.evolution import OFA, evolve
from predictors.search.front import find_front, widest_gains


class Problem:
    """Scores with effects of pairs of choices, MACs, parameters, and a latency that larger kernels make
    shorter."""

    def __init__(self, space: Space, classes: int, channels: int) -> None:
        self.space, self.classes, self.channels = space, classes, channels
        rng = np.random.default_rng(5)
        width = int(space.cardinalities.sum())
        self.weight, self.pairs = rng.normal(0, 1, width), rng.normal(0, 0.02, (width, width))

    def score(self, rows: Codes) -> Floats:
        X = thermometer(self.space, rows)
        return X @ self.weight + np.einsum("ni,ij,nj->n", X, self.pairs, X, optimize=True)

    def macs(self, rows: Codes) -> np.ndarray:
        return costs_of(self.space, rows, self.classes, self.channels).macs

    def params(self, rows: Codes) -> np.ndarray:
        return costs_of(self.space, rows, self.classes, self.channels).params

    def latency(self, rows: Codes) -> np.ndarray:
        kernel = [i for i, c in enumerate(self.space.columns) if c.field == "kernel"]
        return self.macs(rows) ** 0.7 / (1 + rows[:, kernel].sum(1))


@pytest.fixture
def problem(tiny: Space) -> Problem:
    return Problem(tiny, 10, 1)


def limits_of(problem: Problem, rows: Codes, shares: dict[str, float]) -> list[Constraint]:
    """Each cost limited to a quantile of what `rows` cost."""
    costs = {"macs": problem.macs, "params": problem.params, "latency": problem.latency}
    return [
        Constraint(name, float(np.quantile(costs[name](rows), share)), costs[name])
        for name, share in shares.items()
    ]


@pytest.mark.parametrize(
    "shares",
    [
        {"macs": 0.0},
        {"macs": 0.3},
        {"params": 0.5},
        {"latency": 0.1},
        {"macs": 0.5, "params": 0.4, "latency": 0.3},
        {},
    ],
)
def test_finds_the_best_architecture_under_every_limit(
    problem: Problem, everything: Codes, shares: dict[str, float]
) -> None:
    limits = limits_of(problem, everything, shares)
    inside = (
        np.all([c.cost(everything) <= c.limit for c in limits], axis=0)
        if limits
        else np.ones(len(everything), bool)
    )
    found = find_best(problem.space, problem.score, limits, np.random.default_rng(0))
    assert all((c.cost(found) <= c.limit).all() for c in limits)
    assert len(np.unique(found, axis=0)) == len(found)
    assert (np.diff(problem.score(found)) <= 0).all()
    assert problem.score(found[:1])[0] == pytest.approx(problem.score(everything[inside]).max())


def test_nothing_is_found_where_nothing_is(problem: Problem, everything: Codes) -> None:
    limit = Constraint("macs", problem.macs(everything).min() - 1, problem.macs)
    assert len(find_best(problem.space, problem.score, [limit], np.random.default_rng(0))) == 0


@pytest.mark.parametrize("costs", [["macs"], ["latency"], ["macs", "latency"], ["params", "macs", "latency"]])
def test_front_is_that_of_brute_force(problem: Problem, everything: Codes, costs: list[str]) -> None:
    functions = [getattr(problem, name) for name in costs]
    limit = Constraint("params", float(np.quantile(problem.params(everything), 0.7)), problem.params)
    found = find_front(
        problem.space, problem.score, functions, [limit], np.random.default_rng(0), everything[:0]
    )
    inside = everything[problem.params(everything) <= limit.limit]
    truth = inside[pareto_front(problem.score(inside), np.stack([f(inside) for f in functions], axis=1))]
    assert np.array_equal(np.unique(found, axis=0), np.unique(truth, axis=0))


def test_widest_gains_are_spread_and_not_where_better_is_known() -> None:
    costs, scores = np.geomspace(1, 512, 10)[:, None], np.arange(10.0)
    known = np.array([0.5, 7.5]), np.array([[1.0], [16.0]])
    chosen = widest_gains(scores, costs, *known, 3)
    assert chosen[0] == 9, (
        "5 doublings and 1.5 above the best known there; 3 gains more than 2 but is next to it"
    )
    assert set(chosen[1:]) == {2, 3}
    assert widest_gains(scores[:0], costs[:0], *known, 3) == []


def test_nearest_feasible_names_what_binds(problem: Problem, everything: Codes) -> None:
    least = np.random.default_rng(0), encode(problem.space, smallest(problem.space))[None]
    possible = limits_of(problem, everything, {"macs": 0.5, "latency": 0.5})
    assert nearest_feasible(problem.space, possible, *least) == []
    macs, latency = limits_of(problem, everything, {"macs": 0.0, "latency": 0.0})
    inside = everything[problem.macs(everything) <= macs.limit]
    truth = problem.latency(inside).min()
    assert truth > latency.limit, "each limit can be kept, but not both"
    assert nearest_feasible(problem.space, [macs, latency], *least) == [(latency, pytest.approx(truth))]
    none = [Constraint("macs", 1, problem.macs), Constraint("latency", 1e-9, problem.latency)]
    cheapest = everything[problem.macs(everything) == problem.macs(everything).min()]
    relaxed = nearest_feasible(problem.space, none, *least)
    assert [(c.name, value) for c, value in relaxed] == [
        ("macs", problem.macs(cheapest)[0]),
        ("latency", pytest.approx(problem.latency(cheapest).min())),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["macs", "latency"])
@pytest.mark.parametrize("name", ["attentive_nas", "ofa_mbv3"])
def test_never_worse_than_ofas_evolution(name: str, cost: str) -> None:
    problem = Problem(load_space(name), 1000, 3)
    samples = sample_codes(problem.space, 2_000, np.random.default_rng(1))
    for share in (0.05, 0.5):
        limits = limits_of(problem, samples, {cost: share})
        start = np.concatenate([samples[:100], encode(problem.space, smallest(problem.space))[None]])
        theirs = evolve(
            problem.space,
            problem.score,
            limits,
            np.random.default_rng(0),
            start,
            OFA._replace(generations=100),
        )
        ours = find_best(problem.space, problem.score, limits, np.random.default_rng(0))
        assert problem.score(ours[:1])[0] >= theirs.scores[0] - 1e-9


@pytest.mark.slow
def test_reaches_the_optimum_of_longer_searches_on_imagenet(
    imagenet: tuple[Space, Codes, np.ndarray],
) -> None:
    """By a Gaussian process of measured OFA subnets."""
    space, codes, y = imagenet
    model = GaussianProcess().fit(thermometer(space, codes[:200]), y[:200], 0)

    def score(rows: Codes) -> Floats:
        return model.mean(thermometer(space, rows))

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 1000, 3).macs

    found = decompose(space, macs)
    assert found
    gains = fit_additive(space, score, found.parts, np.random.default_rng(0))
    seeds = merge_fronts(space, gains, found.parts)
    for budget in (200e6, 300e6, 400e6):
        limits = [Constraint("macs", budget, macs)]
        many = np.concatenate(
            [
                seeds,
                sample_codes(space, 20_000, np.random.default_rng(1)),
                encode(space, largest(space))[None],
            ]
        )
        longer = evolve(
            space,
            score,
            limits,
            np.random.default_rng(1),
            many,
            OFA._replace(parents=256, children=1_024, generations=60),
        )
        best = find_best(space, score, limits, np.random.default_rng(0), seeds)[:1]
        assert score(best)[0] >= longer.scores[0] - 1e-4
