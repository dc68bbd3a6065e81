"""What the benchmarks of selection search: spaces, scores of architectures, and limits of all kinds."""

import ast
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.blocks.layers import LayerSpec, cost_of_layer
from engine.statistics import Floats
from ofa.cost import memory_of_layer
from ofa.layers import cost_tables, total
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, encode, sample_codes
from ofa.space.space import Space, load_space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.ridge import Ridge
from predictors.latency.model import LatencyModel
from predictors.latency.published import read_published
from predictors.search.constraints import ArchCostFn, Constraint, ScoreFn, format_cost
from predictors.search.costs import cost_functions

WIDTH = (16, 16, 24, 40, 80, 112, 160, 1280)
# Points of accuracy for a resolution e times as high. OFA's subnets gain 3 to 5 from 128 to 224 px.
SLOPE = 0.05
NOTE10 = (160, 192, 224)  # pixels
BUDGETS = (0.02, 0.2, 0.4, 0.6, 0.8, 0.98)  # between the smallest and the largest, in logarithms of MACs


class Problem(NamedTuple):
    """A space, the score of its architectures, and their costs by name."""

    space: Space
    score: ScoreFn
    costs: dict[str, ArchCostFn]


def measured(folder: Path) -> tuple[Codes, Floats]:
    """Subnets of `ofa_mbv3` at 224 px, each once, and their accuracies on ImageNet in random order."""
    space, accuracy = load_space("ofa_mbv3"), {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            for r in csv.DictReader(file):
                a = ast.literal_eval(r["Sub-network"])
                depth, kernel, expand = (1, *a["d"]), (3, *a["ks"]), (1, *a["e"])
                arch = Arch(resolution=224, width=WIDTH, depth=depth, kernel=kernel, expand=expand)
                accuracy[encode(space, arch).tobytes()] = float(r["Top-1 Acc (%)"]) / 100
    codes = np.array([np.frombuffer(row, np.uint8) for row in accuracy])
    order = np.random.default_rng(0).permutation(len(codes))
    return codes[order], np.array(list(accuracy.values()))[order]


def imagenet(folder: Path, predictor: str, lut: Path | None = None) -> Problem:
    """`ofa_mbv3` with a predictor ("gp" or "ridge") of 400 measured subnets plus a term for the resolution.

    Args:
        folder: of the CSV files.
        predictor: which one.
        lut: folder of the latency tables of a Note10. They are of the wider `ofa_mbv3_w1.2` at three
            resolutions, which is searched then, as if accuracies were the same. None: a made-up latency.
    """
    named = load_space("ofa_mbv3")
    codes, y = measured(folder)
    model: GaussianProcess | Ridge = Ridge() if predictor == "ridge" else GaussianProcess()
    model.fit(features(named, codes[:400]), y[:400], 0)
    space = named
    if lut:
        wide = load_space("ofa_mbv3_w1.2")
        values = {name: getattr(wide, name) for name in Space.model_fields}
        space = Space.model_validate(values | {"resolution": NOTE10})
    gain = SLOPE * np.log(np.array(space.resolution) / 224)

    def score(rows: Codes) -> Floats:
        at_224 = rows.copy()
        at_224[:, 0] = len(named.resolution)
        accuracy = model.mean(features(named, at_224))
        if predictor == "ridge":
            # On the scale of the predictor effects add up. One unit is about a point of accuracy.
            accuracy = 0.01 * model.scale_.to(accuracy)
        total: Floats = accuracy + gain[rows[:, 0] - 1]
        return total

    return Problem(space, score, costs_by_name(space, lut))


def made_up() -> Problem:
    """`attentive_nas` with a predictor of made-up accuracies: effects of all choices and of pairs of them."""
    space, rng = load_space("attentive_nas"), np.random.default_rng(0)
    X = features(space, sample_codes(space, 400, rng))
    effects = np.abs(rng.normal(0, 0.002, X.shape[1]))
    pairs = rng.normal(0, 1e-4, (X.shape[1], X.shape[1]))
    y = 0.7 + X @ effects + np.einsum("ni,ij,nj->n", X, pairs, X) + rng.normal(0, 0.001, len(X))
    model = GaussianProcess().fit(X, y, 0)

    def score(rows: Codes) -> Floats:
        return model.mean(features(space, rows))

    return Problem(space, score, costs_by_name(space))


def costs_by_name(space: Space, lut: Path | None = None) -> dict[str, ArchCostFn]:
    """MACs, parameters, bytes, and a latency that is made up or of the tables in `lut`."""
    costs = cost_functions(space, 1000, 3, None)
    if lut:
        table = read_published(tuple(sorted(lut.glob("*.yaml"))), "note10", space)
        return costs | {"latency": LatencyModel(table, space).predict}

    # A layer takes some time however small it is, and moves memory beside multiplying.
    def milliseconds(layer: LayerSpec) -> tuple[float]:
        return (0.1 + cost_of_layer(layer)[0] / 2e7 + memory_of_layer(layer) / 5e5,)

    tables = tuple(cost_tables(space, 1000, 3, milliseconds, dtype=np.float64))

    def latency(rows: Codes) -> Floats:
        found: Floats = total(tables, rows)[0]
        return found

    return costs | {"latency": latency}


def limit_sets(problem: Problem) -> list[list[Constraint]]:
    """Budgets of MACs from just above the smallest to just below the largest, and limits of several kinds."""
    space, costs = problem.space, problem.costs
    ends = np.stack([encode(space, smallest(space)), encode(space, largest(space))])
    low, high = costs["macs"](ends)
    sets = []
    for share in BUDGETS:
        sets.append([Constraint("macs", float(low * (high / low) ** share), costs["macs"])])
    rows = sample_codes(space, 2_000, np.random.default_rng(0))
    kinds = [("params",), ("latency",), ("latency", "params"), ("latency", "params", "size", "memory")]
    for names in kinds:
        # A quarter, and a half, of random architectures keep each limit.
        for share in (0.25, 0.5):
            limits = []
            for name in ("macs", *names):
                limits.append(Constraint(name, float(np.quantile(costs[name](rows), share)), costs[name]))
            sets.append(limits)
    return sets


def named(limits: Sequence[Constraint]) -> str:
    """Limits as flags of predictors.select, rounded."""
    return " ".join(f"{limit.flag} {format_cost(limit.name, limit.limit, 4)}" for limit in limits)


def counted(score: ScoreFn) -> tuple[ScoreFn, Callable[[], int]]:
    """The score, and a function that says how many architectures it was asked for."""
    asked = 0

    def counting(rows: Codes) -> Floats:
        nonlocal asked
        asked += len(rows)
        return score(rows)

    def count() -> int:
        return asked

    return counting, count
