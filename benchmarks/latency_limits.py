"""How many architectures keep a limit of latency that was set on predictions, and that was set on bounds.

    python benchmarks/latency_limits.py selected --run runs/supernet --timings kit/latency.csv
    python benchmarks/latency_limits.py held-out --measured FOLDER/ofa_mbv3.csv.gz

selected: searches the best predicted accuracy under seven limits with a table of this machine, as
predictors.select does, and times what it finds. "20th percentile" is the table of before: each item is the
20th percentile of the rounds' 20th percentiles, and a limit is compared with the mere prediction.

held-out: the 5,000 measured subnets of `latency_transfer.py`. A table gets some of them, and the bound is
judged on 1,000 others.
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from latency_transfer import read, table_of

from engine.config import validate
from engine.run import read_json
from engine.statistics import Floats
from ofa.space.codes import Codes, encode
from ofa.space.space import Space, load_space
from ofa.trained import SupernetModel
from predictors.accuracy.features import features
from predictors.accuracy.models import make_predictor
from predictors.accuracy.pairs import read_pairs
from predictors.latency.here import time_architecture
from predictors.latency.model import LatencyModel
from predictors.latency.timings import Timings, build_table, read_timings
from predictors.search.best import find_best
from predictors.search.constraints import Constraint

SHARES = (
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
)  # limits: this far between the fastest and the slowest network
BEST = 3  # architectures that are timed for each limit


def twentieth_percentiles(path: Path, timings: Timings) -> Timings:
    """The same timings, but of each item the 20th percentile of its visits' 20th percentiles."""
    values: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values.setdefault(row["name"], []).append(float(row[f"{timings.clock}_p20"]))
    ms = {name: {0: float(np.percentile(found, 20))} for name, found in values.items()}
    return timings._replace(ms=ms, p90={})


def judge_selected(run: Path, csv_path: Path) -> None:
    """Search under limits with both tables, time what is found, and print it."""
    model = validate(SupernetModel, read_json(run / "model.json"), "model.json")
    space, classes, channels = model.space, len(model.classes), model.channels
    timings = read_timings(csv_path)
    table, _ = build_table(timings, "here", space, classes, channels)
    old_table, _ = build_table(twentieth_percentiles(csv_path, timings), "here", space, classes, channels)
    new, old = LatencyModel(table, space), LatencyModel(old_table, space)
    print(*new.notes(), sep="\n")
    pairs = read_pairs(run)
    codes = np.stack([encode(space, pair.arch) for pair in pairs])
    accuracies = np.array([pair.val_accuracy for pair in pairs])
    predictor = make_predictor("ridge").fit(features(space, codes), accuracies, 0)

    def score(rows: Codes) -> Floats:
        return predictor.predict(features(space, rows))[0]

    measured = [network.ms for network in table.networks]
    print("limit", "table", "predicted", "compared", "timed", "over by", sep="\t")
    over: dict[str, list[float]] = {"20th percentile": [], "bound": []}
    for share in SHARES:
        limit = min(measured) + share * (max(measured) - min(measured))
        for name, latency, cost in (("20th percentile", old, old.predict), ("bound", new, new.bound)):
            rng = np.random.default_rng(0)
            for row in find_best(space, score, [Constraint("latency", limit, cost)], rng)[:BEST]:
                ms = time_architecture(space, row, table)
                over[name].append(ms / limit - 1)
                numbers = (latency.predict(row[None])[0], cost(row[None])[0], ms)
                print(
                    f"{limit:.4g}",
                    name,
                    *(f"{n:.4g}" for n in numbers),
                    f"{ms / limit - 1:+.1%}",
                    sep="\t",
                    flush=True,
                )
    print_shares(over)


def print_shares(over: Mapping[str, list[float]]) -> None:
    """The share of architectures that keep their limits, and how far the others are over them."""
    for name, found in over.items():
        values = np.array(found)
        worst = f"median {np.median(values):+.1%}, most {values.max():+.1%}"
        print(f"{name}: {np.mean(values <= 0):.0%} of {len(values)} keep the limit; {worst}")


def judge_held_out(path: Path, space: Space) -> None:
    """Print the share of held-out networks that keep the bound, by device and size of the table."""
    codes, latency = read(path, space)
    latency = {name: ms for name, ms in latency.items() if name.endswith("_1")}
    rng = np.random.default_rng(0)
    order = rng.permutation(len(codes))
    held, known = order[:1000], order[1000:]
    print("device", "networks", "margin", "under the prediction", "under the bound", sep="\t")
    for name, ms in latency.items():
        for count in (10, 20, 40, 100, 400):
            margins, plain, kept = [], [], []
            for _ in range(20 if count < 100 else 5):
                few = rng.choice(known, count, replace=False)
                model = LatencyModel(table_of(name, space, codes[few], ms[few]), space)
                margins.append(model.margin or 0.0)
                plain.append(np.mean(ms[held] <= model.predict(codes[held])))
                kept.append(np.mean(ms[held] <= model.bound(codes[held])))
            shares = (np.mean(margins), np.mean(plain), np.mean(kept))
            print(name, count, *(f"{share:.1%}" for share in shares), sep="\t", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("selected", "held-out"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--timings", type=Path)
    parser.add_argument("--measured", type=Path)
    args = parser.parse_args()
    if args.what == "selected":
        judge_selected(args.run, args.timings)
    else:
        judge_held_out(args.measured, load_space("ofa_mbv3"))


if __name__ == "__main__":
    main()
