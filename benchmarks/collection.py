"""What choosing subnets in rounds saves against choosing them at random, to know the front of accuracy
against MACs.

python benchmarks/collection.py --measured FOLDER

The truth is a Gaussian process of all OFA subnets measured on ImageNet (FOLDER, CSV files with columns
`Sub-network` and `Top-1 Acc (%)`); measuring adds noise. For each number of measured subnets, by how many
points the best front known is ahead on average over log MACs, in true accuracies: of the front of what was
measured; and of the front that a predictor of it finds, where predictors.select starts. And the Kendall tau
of that predictor on random subnets.
"""

import argparse
import ast
import csv
import statistics
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from ofa.cost import costs_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space, load_space
from predictors.accuracy.acquisition import hypervolume
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.pairs import Pair
from predictors.collect import to_measure
from predictors.search.constraints import ScoreFn
from predictors.search.evolution import OURS
from predictors.search.front import find_front

WIDTH = (16, 16, 24, 40, 80, 112, 160, 1280)
NOISE = 0.0005  # standard deviation of a measured accuracy


def imagenet(folder: Path) -> tuple[Space, ScoreFn]:
    """The space at resolution 224, and the true accuracy."""
    named = load_space("ofa_mbv3")
    space = Space.model_validate(
        {name: getattr(named, name) for name in Space.model_fields} | {"resolution": (224,)}
    )
    accuracy: dict[bytes, list[float]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            for r in csv.DictReader(file):
                a = ast.literal_eval(r["Sub-network"])
                arch = Arch(
                    resolution=224, width=WIDTH, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"])
                )
                accuracy.setdefault(encode(space, arch).tobytes(), []).append(float(r["Top-1 Acc (%)"]) / 100)
    codes = np.array([np.frombuffer(row, np.uint8) for row in accuracy])
    model = GaussianProcess().fit(
        features(space, codes), np.array([statistics.mean(found) for found in accuracy.values()]), 0
    )
    return space, lambda rows: model.mean(features(space, rows))


def regret(space: Space, truth: ScoreFn, rows: Codes, best: float) -> float:
    """Points that the front of `rows` is behind the best one, on average over log MACs."""
    size, end = np.log(macs_of(space, rows)), extremes(space)
    return 100 * (best - hypervolume(size, truth(rows), end[1])) / (end[1] - end[0])


def macs_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 1000, 3).macs


def extremes(space: Space) -> np.ndarray:
    return np.log(macs_of(space, np.stack([encode(space, f(space)) for f in (smallest, largest)])))


def searched(space: Space, score: ScoreFn, generations: int) -> Codes:
    """The front of `score` among everything that an evolution looked at."""
    settings, none = OURS._replace(generations=generations), np.empty((0, len(space.columns)), np.uint8)
    return find_front(
        space, score, [lambda rows: macs_of(space, rows)], [], np.random.default_rng(0), none, settings
    )


def collect(space: Space, truth: ScoreFn, count: int, rounds: int, seed: int) -> list[Pair]:
    """As predictors.collect does."""
    noise, pairs = np.random.default_rng(seed), list[Pair]()
    for row in to_measure(space, lambda rows: macs_of(space, rows), pairs, count, rounds, seed):
        accuracy = float(truth(row[None])[0] + noise.normal(0, NOISE))
        pairs.append(Pair(arch=decode(space, row), val_accuracy=accuracy, macs=0, params=0))
    return pairs


def report(space: Space, truth: ScoreFn, count: int, ways: list[int], seeds: int) -> None:
    best_rows = searched(space, truth, 240)
    best = hypervolume(np.log(macs_of(space, best_rows)), truth(best_rows), extremes(space)[1])
    others = sample_codes(space, 2_000, np.random.default_rng(10**6))
    steps = [n for n in (30, 60, 100, 150, 200, 300, 500, 800) if n <= count]
    for rounds in ways:
        figures, started = [], time.process_time()
        for seed in range(seeds):
            pairs = collect(space, truth, count, rounds, seed)
            codes, y = (
                np.stack([encode(space, pair.arch) for pair in pairs]),
                np.array([pair.val_accuracy for pair in pairs]),
            )
            for n in steps:
                model = GaussianProcess().fit(features(space, codes[:n]), y[:n], 0)
                predicted = searched(space, lambda rows, model=model: model.mean(features(space, rows)), 20)
                tau = kendalltau(model.mean(features(space, others)), truth(others)).statistic
                figures.append(
                    (regret(space, truth, codes[:n], best), regret(space, truth, predicted, best), tau)
                )
        table = np.array(figures).reshape(seeds, len(steps), 3)
        seconds = (time.process_time() - started) / seeds
        for n, mean, std in zip(steps, table.mean(0), table.std(0), strict=True):
            cells = " ".join(f"{m:7.3f} +- {s:.3f}" for m, s in zip(mean, std, strict=True))
            print(
                f"{rounds:3} rounds  {n:4} measured  front behind, predicted front behind, tau: {cells}",
                flush=True,
            )
        print(f"{rounds:3} rounds: {seconds:.1f} s CPU a seed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", type=Path, required=True, help="folder of measured OFA subnets")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 3, 5, 9])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    report(*imagenet(args.measured), args.count, args.rounds, args.seeds)


if __name__ == "__main__":
    main()
