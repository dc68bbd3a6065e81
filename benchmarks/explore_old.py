"""What each way to explore reaches, by its own predictor, and what it costs.

python benchmarks/explore.py --measured FOLDER

The predictor is a Gaussian process of 400 subnets. For `ofa_mbv3` they are OFA subnets measured on ImageNet (FOLDER, CSV files with
columns `Sub-network` and `Top-1 Acc (%)`), all at resolution 224, so the search is at 224 as well. For `attentive_nas` nothing is
published: their accuracy is made up, with effects of every choice and of pairs of choices, and only costs can be compared.
"""

import argparse
import ast
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ofa.cost import costs_of
from ofa.space import Arch, Space, encode, features, load_space, sample_codes
from predictors.accuracy import GaussianProcess

SEEDS = range(3)
WIDTH = (16, 16, 24, 40, 80, 112, 160, 1280)
BUDGETS = {"ofa_mbv3": (150, 200, 250, 300, 400, 500), "attentive_nas": (250, 300, 400, 600, 800, 1200)}



def imagenet(folder: Path) -> tuple[Space, GaussianProcess]:
    named = load_space("ofa_mbv3")
    space = Space.model_validate({name: getattr(named, name) for name in Space.model_fields} | {"resolution": (224,)})
    accuracy = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            for r in csv.DictReader(file):
                a = ast.literal_eval(r["Sub-network"])
                arch = Arch(resolution=224, width=WIDTH, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"]))
                accuracy[encode(space, arch).tobytes()] = float(r["Top-1 Acc (%)"]) / 100
    codes = np.array([np.frombuffer(row, np.uint8) for row in accuracy])
    chosen = np.random.default_rng(0).permutation(len(codes))[:400]
    return space, GaussianProcess().fit(features(space, codes[chosen]), np.array(list(accuracy.values()))[chosen], 0)


def made_up() -> tuple[Space, GaussianProcess]:
    space, rng = load_space("attentive_nas"), np.random.default_rng(0)
    X = features(space, sample_codes(space, 400, rng))
    pairs = rng.normal(0, 1e-4, (X.shape[1], X.shape[1]))
    y = 0.7 + X @ np.abs(rng.normal(0, 0.002, X.shape[1])) + np.einsum("ni,ij,nj->n", X, pairs, X) + rng.normal(0, 0.001, len(X))
    return space, GaussianProcess().fit(X, y, 0)


def compare(*a):
  pass
def cc(*a):
    budgets = tuple(m * 10**6 for m in BUDGETS[space.name])
    asked = 0

    def macs(rows: np.ndarray) -> np.ndarray:
        return costs_of(space, rows).macs

    def score(rows: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(rows)
        return model.predict(features(space, rows))[0]

    def per_budget(settings: object) -> Callable[[np.random.Generator], list[float]]:
        return lambda rng: [score(evolve(space, score, macs, budget, rng, settings)[:1])[0] for budget in budgets]

    def front(generations: int) -> Callable[[np.random.Generator], list[float]]:
        def run(rng: np.random.Generator) -> list[float]:
            rows = evolve_front(space, score, macs, budgets, rng, FRONT._replace(generations=generations))
            return [score(rows[macs(rows) <= budget][:1])[0] for budget in budgets]

        return run

    def coarse(count: int) -> Callable[[np.random.Generator], list[float]]:
        def run(rng: np.random.Generator) -> list[float]:
            measured = Measured(space, macs, lambda arch: float(score(encode(space, arch)[None])[0]), [])
            for budget in budgets:
                coarse_to_fine(measured, budget, count, rng, lambda note: None)
            return [measured.under(budget)[0].val_accuracy for budget in budgets]

        return run

    ways = {
        "evolve": per_budget(PER_BUDGET),
        "evolve, small": per_budget(SMALL),
        "evolve, OFA's settings": per_budget(OFA),
        "evolve-front": front(20),
        "evolve-front, 80 generations": front(80),
        "evolve-front, 240 generations": front(240),
        "coarse-to-fine, 20 a budget": coarse(20),
        "coarse-to-fine, 100 a budget": coarse(100),
    }
    print(f"{space.name}, budgets {', '.join(f'{m}M' for m in BUDGETS[space.name])}")
    for name, way in ways.items():
        started, asked = time.process_time(), 0
        reached = np.array([way(np.random.default_rng(seed)) for seed in SEEDS])
        seconds = (time.process_time() - started) / len(SEEDS)
        figures = " ".join(f"{100 * value:6.2f}" for value in reached.mean(0))
        print(
            f"{name:30} {asked / len(SEEDS):7.0f} predictions {seconds:6.2f} s CPU  {figures}  sd {100 * reached.std(0).mean():.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="folder of measured OFA subnets; none: attentive_nas only")
    folder = parser.parse_args().measured
    if folder:
        compare(*imagenet(folder))
    compare(*made_up())


if __name__ == "__main__":
    main()
