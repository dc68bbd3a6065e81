"""How well a few networks and other devices' measurements predict a new device, and how well anything could.

    python benchmarks/latency_transfer.py --measured FOLDER/ofa_mbv3.csv.gz --batch 1

The data: 5,000 subnets of OFA-MobileNetV3 on four GPUs at batch 1. 1,000 random ones are held out; each
device in turn is the new one, and the 4,000 others of the other three are what others measured. The noise
ceiling is `ceiling` below.
"""

import argparse
import csv
import gzip
import json
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from engine.blocks.latency_table import LatencyTable, Noise, TimedNetwork
from engine.statistics import Floats
from ofa.cost import costs_of
from ofa.space.arch import Arch
from ofa.space.codes import Codes, encode, thermometer
from ofa.space.space import Space, load_space
from predictors.latency.model import LatencyModel
from predictors.latency.table import space_fingerprint


def read(path: Path, space: Space) -> tuple[Codes, dict[str, Floats]]:
    """Codes of the subnets, and milliseconds by device."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = []
    for row in rows:
        a = json.loads(row["arch"])
        widths = (16, 16, 24, 40, 80, 112, 160, 1280)
        arch = Arch(
            resolution=a["r"], width=widths, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"])
        )
        codes.append(encode(space, arch))  # entries of inactive blocks become 0
    devices = [name for name in rows[0] if name not in ("index", "arch")]
    return np.stack(codes), {name: np.array([float(row[name]) for row in rows]) for name in devices}


def table_of(
    device: str, space: Space, codes: Codes, ms: Floats, others: tuple[LatencyTable, ...] = ()
) -> LatencyTable:
    """A table that holds these networks."""
    return LatencyTable(
        device=device,
        runtime="pytorch",
        threads=1,
        clock="unknown",
        space=space.name,
        fingerprint=space_fingerprint(space),
        classes=1000,
        channels=3,
        resolutions=space.resolution,
        noise=Noise(rounds=1, reliability=None, relative=None),
        networks=tuple(
            TimedNetwork(codes=row.tobytes().hex(), ms=float(y)) for row, y in zip(codes, ms, strict=True)
        ),
        others=others,
    )


def ceiling(
    space: Space, codes: Codes, ms: Floats, predicted: Floats, rng: np.random.Generator
) -> tuple[float, float]:
    """(Kendall's tau that true latencies would reach against measured ones, share of the residual that
    architecture may still explain).

    What a model leaves is noise as far as the most alike architectures do not share it: the share that they
    do is 1 minus the ratio of the median squared differences of residuals between neighbours (nearest by
    choices) and between strangers. The rest of the residuals, shuffled and added to the predictions, is a
    second measurement of them.
    """
    X = thermometer(space, codes)
    square = (X**2).sum(1)
    nearest = []
    for start in range(0, len(X), 500):
        distance = square[start : start + 500, None] + square - 2 * X[start : start + 500] @ X.T
        distance[np.arange(len(distance)), start + np.arange(len(distance))] = np.inf
        nearest.append(distance.argmin(1))
    left = ms - predicted
    alike = left - left[np.concatenate(nearest)]
    strange = left - rng.permutation(left)
    share = 1 - float(np.median(alike**2) / np.median(strange**2))
    again = predicted + rng.permutation(left) * np.sqrt(1 - max(share, 0.0))
    return float(kendalltau(predicted, again).statistic), share


def main() -> None:
    space = load_space("ofa_mbv3")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--batch", default="1", help="1, 32 or 64")
    args = parser.parse_args()
    codes, latency = read(args.measured, space)
    latency = {name: ms for name, ms in latency.items() if name.endswith(f"_{args.batch}")}
    rng = np.random.default_rng(0)
    order = rng.permutation(len(codes))
    held, known = order[:1000], order[1000:]
    whole = {name: table_of(name, space, codes[known], ms[known]) for name, ms in latency.items()}
    macs = costs_of(space, codes, 1000, 3).macs
    print("device", "MACs", "10", "100", "1000", "4000 alone", "ceiling", "left to explain", sep="\t")
    rows = []
    for name, ms in latency.items():
        others = tuple(table for other, table in whole.items() if other != name)
        row = [float(kendalltau(macs[held], ms[held]).statistic)]
        for count in (10, 100, 1000):
            taus = []
            for _ in range(5):
                few = rng.choice(known, count, replace=False)
                model = LatencyModel(table_of(name, space, codes[few], ms[few], others), space)
                taus.append(kendalltau(model.predict(codes[held]), ms[held]).statistic)
            row.append(float(np.mean(taus)))
        alone = LatencyModel(whole[name], space).predict(codes)
        row += [float(kendalltau(alone[held], ms[held]).statistic), *ceiling(space, codes, ms, alone, rng)]
        rows.append(row)
        print(name, *(f"{tau:.3f}" for tau in row), sep="\t", flush=True)
    print("mean", *(f"{tau:.3f}" for tau in np.mean(rows, axis=0)), sep="\t")


if __name__ == "__main__":
    main()
