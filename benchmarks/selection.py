"""The best predicted accuracy under a budget against evaluations and seconds: Optuna's samplers, OFA's
evolution, and ours.

python benchmarks/selection.py [--measured FOLDER] [--trials 2000] [--seeds 2]

For `ofa_mbv3` the predictor is a Gaussian process of 400 OFA subnets measured on ImageNet (FOLDER, CSV files
with columns `Sub-network` and `Top-1 Acc (%)`), all at resolution 224, so the search is at 224 as well. For
`attentive_nas` nothing is published: the accuracies are made up, with effects of every choice and of pairs of
choices. OFA's evolution is ours with the paper's settings and without seeds; drawing until feasible, as its
code does, would cost more. Seconds are CPU time without fitting the predictor.
"""

import argparse
import ast
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna

from ofa.cost import costs_of
from ofa.space.arch import Arch, smallest
from ofa.space.codes import Codes, canonical, encode, sample_codes
from ofa.space.space import Space, load_space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.search.best import find_best
from predictors.search.constraints import Constraint
from predictors.search.dynamic_programming import additive_fronts, layer_costs
from predictors.search.evolution import OFA, evolve

WIDTH = (16, 16, 24, 40, 80, 112, 160, 1280)
BUDGETS = {"ofa_mbv3": (200, 300, 400), "attentive_nas": (300, 600, 1000)}


def imagenet(folder: Path) -> tuple[Space, GaussianProcess]:
    named = load_space("ofa_mbv3")
    space = Space.model_validate(
        {name: getattr(named, name) for name in Space.model_fields} | {"resolution": (224,)}
    )
    accuracy = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            for r in csv.DictReader(file):
                a = ast.literal_eval(r["Sub-network"])
                arch = Arch(
                    resolution=224, width=WIDTH, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"])
                )
                accuracy[encode(space, arch).tobytes()] = float(r["Top-1 Acc (%)"]) / 100
    codes = np.array([np.frombuffer(row, np.uint8) for row in accuracy])
    chosen = np.random.default_rng(0).permutation(len(codes))[:400]
    return space, GaussianProcess().fit(
        features(space, codes[chosen]), np.array(list(accuracy.values()))[chosen], 0
    )


def made_up() -> tuple[Space, GaussianProcess]:
    space, rng = load_space("attentive_nas"), np.random.default_rng(0)
    X = features(space, sample_codes(space, 400, rng))
    pairs = rng.normal(0, 1e-4, (X.shape[1], X.shape[1]))
    y = (
        0.7
        + X @ np.abs(rng.normal(0, 0.002, X.shape[1]))
        + np.einsum("ni,ij,nj->n", X, pairs, X)
        + rng.normal(0, 0.001, len(X))
    )
    return space, GaussianProcess().fit(X, y, 0)


def with_optuna(
    space: Space,
    score: Callable[[Codes], np.ndarray],
    limit: Constraint,
    sampler: optuna.samplers.BaseSampler,
    trials: int,
) -> float:
    def objective(trial: optuna.Trial) -> float:
        picked = [
            1 + trial.suggest_int(f"{c.field}[{c.position}]", 0, len(c.values) - 1) for c in space.columns
        ]
        row = canonical(space, np.array([picked], np.uint8))
        trial.set_constraint("macs", float(limit.cost(row)[0] - limit.limit))
        return float(score(row)[0])

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return max((t.value or 0.0 for t in study.trials if t.constraints["macs"] <= 0), default=float("nan"))


def compare(space: Space, model: GaussianProcess, trials: int, seeds: int) -> None:
    asked = 0
    parts = layer_costs(space, 1000, 3)["macs"]

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 1000, 3).macs

    def score(rows: Codes) -> np.ndarray:
        nonlocal asked
        asked += len(rows)
        return model.mean(features(space, rows))

    def ours(limit: Constraint, seed: int) -> float:
        rng = np.random.default_rng(seed)
        found = find_best(space, score, [limit], rng, additive_fronts(space, score, [parts], rng))
        return float(score(found[:1])[0])

    def ofa(limit: Constraint, seed: int) -> float:
        rng = np.random.default_rng(seed)
        start = sample_codes(space, 100_000, rng)
        start = np.concatenate(
            [encode(space, smallest(space))[None], start[macs(start) <= limit.limit][: OFA.initial]]
        )
        return float(evolve(space, score, [limit], rng, start, OFA).scores[0])

    ways: dict[str, Callable[[Constraint, int], float]] = {
        "ours": ours,
        "OFA's evolution": ofa,
        "Optuna random": lambda limit, seed: with_optuna(
            space, score, limit, optuna.samplers.RandomSampler(seed), trials
        ),
        "Optuna NSGA-II": lambda limit, seed: with_optuna(
            space, score, limit, optuna.samplers.NSGAIISampler(seed=seed), trials
        ),
        "Optuna TPE": lambda limit, seed: with_optuna(
            space, score, limit, optuna.samplers.TPESampler(seed=seed), trials // 4
        ),
    }
    print(f"{space.name}, a search for each of {', '.join(f'{m}M' for m in BUDGETS[space.name])}", flush=True)
    for name, way in ways.items():
        asked, started = 0, time.process_time()
        reached = np.array(
            [[way(Constraint("macs", m * 1e6, macs), s) for m in BUDGETS[space.name]] for s in range(seeds)]
        )
        searches = reached.size
        figures = " ".join(f"{100 * value:7.3f}" for value in reached.mean(0))
        seconds = (time.process_time() - started) / searches
        spread = 100 * np.nanmean(np.std(reached, 0))
        print(
            f"{name:16} {asked / searches:7.0f} evaluations {seconds:7.2f} s  {figures}  sd {spread:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measured", type=Path, help="folder of measured OFA subnets; none: attentive_nas only"
    )
    parser.add_argument(
        "--trials", type=int, default=2_000, help="of Optuna's random and NSGA-II; a quarter of it of TPE"
    )
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.measured:
        compare(*imagenet(args.measured), args.trials, args.seeds)
    compare(*made_up(), args.trials, args.seeds)


if __name__ == "__main__":
    main()
