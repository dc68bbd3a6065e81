"""90% intervals where a search uses them: on subnets that other searches found later, early to late.

python benchmarks/intervals.py FOLDER [--known 300] [--learn]

FOLDER holds OFA subnets measured on ImageNet, one CSV file for each search, with columns `Sub-network`,
`Date` and `Top-1 Acc (%)`; all at resolution 224. For each search a Gaussian process learns from its first
subnets and predicts those that the other searches found, by date and five at a time, as predictors.select
does. It prints what cross-validation of the known subnets says, and the truth: Kendall's tau, the share
inside the intervals of cross-validation, and inside those that learn from the misses before. With --learn the
predictor learns from every five subnets, too.
"""

import argparse
import ast
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from engine.statistics import Floats, tau_in_bands
from ofa.cost import costs_of
from ofa.space.arch import Arch
from ofa.space.codes import Codes, encode
from ofa.space.space import Space, load_space
from predictors.accuracy.features import features
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.validation import CandidateQuality, cross_validate
from predictors.selection.intervals import Intervals
from predictors.selection.predictor_guided import PER_ROUND

WIDTH = (16, 16, 24, 40, 80, 112, 160, 1280)


class Found(NamedTuple):
    """A measured subnet and when its search measured it."""

    date: str
    row: Codes
    accuracy: float


def read_search(space: Space, path: Path) -> list[Found]:
    """The subnets of one search, each once, in the order of its file."""
    found: dict[bytes, Found] = {}
    with path.open() as file:
        for line in csv.DictReader(file):
            choices = ast.literal_eval(line["Sub-network"])
            depth, kernel, expand = (1, *choices["d"]), (3, *choices["ks"]), (1, *choices["e"])
            arch = Arch(resolution=224, width=WIDTH, depth=depth, kernel=kernel, expand=expand)
            row = encode(space, arch)
            found.setdefault(row.tobytes(), Found(line["Date"], row, float(line["Top-1 Acc (%)"]) / 100))
    return list(found.values())


def by_date(searches: dict[str, list[Found]], without: str) -> list[Found]:
    """The subnets of all searches but one, the earliest first."""
    found = []
    for name, subnets in searches.items():
        if name != without:
            found += subnets
    return sorted(found, key=lambda subnet: subnet.date)


def predict_in_turn(
    known_X: Floats, known_y: Floats, X: Floats, y: Floats, quality: CandidateQuality, learns: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Predict subnets five at a time, and reveal them.

    Returns:
        (mean, whether inside the intervals of cross-validation, corrected mean, whether inside the intervals
        that learn), (N,) each.
    """
    predictor = GaussianProcess().fit(known_X, known_y, 0)
    intervals = Intervals(quality)
    means, fixed, corrected, inside = [], [], [], []
    for start in range(0, len(y), PER_ROUND):
        part = slice(start, start + PER_ROUND)
        mean, std = predictor.predict(X[part])
        predictions = intervals.around(mean, std)
        intervals.learn(mean, std, predictions, y[part])
        means += mean.tolist()
        fixed += (np.abs(y[part] - mean) <= quality.half_width(std)).tolist()
        for prediction, measured in zip(predictions, y[part], strict=True):
            low, high = prediction.interval
            corrected.append(prediction.predicted_accuracy)
            inside.append(low <= measured <= high)
        if learns:
            seen = start + PER_ROUND
            predictor.update(np.concatenate([known_X, X[:seen]]), np.concatenate([known_y, y[:seen]]))
    return np.array(means), np.array(fixed), np.array(corrected), np.array(inside)


def main() -> None:
    """Print a few lines for each search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--known", type=int, default=300)
    parser.add_argument("--learn", action="store_true")
    arguments = parser.parse_args()
    named = load_space("ofa_mbv3")
    fields = {name: getattr(named, name) for name in Space.model_fields}
    space = Space.model_validate(fields | {"resolution": (224,)})
    searches = {path.stem: read_search(space, path) for path in sorted(arguments.folder.glob("*.csv"))}
    for name, subnets in searches.items():
        known = subnets[: arguments.known]
        rows = {subnet.row.tobytes() for subnet in known}
        others: dict[bytes, Found] = {}
        for subnet in by_date(searches, name):
            if subnet.row.tobytes() not in rows:
                others.setdefault(subnet.row.tobytes(), subnet)
        report(space, name, known, list(others.values()), arguments.learn)


def report(space: Space, name: str, known: list[Found], others: list[Found], learns: bool) -> None:
    """Print how good predictions of `others` are that rest on `known`."""
    known_rows, rows = np.stack([s.row for s in known]), np.stack([s.row for s in others])
    known_y, y = np.array([s.accuracy for s in known]), np.array([s.accuracy for s in others])
    macs = costs_of(space, rows, 1000, 3).macs
    known_X, X = features(space, known_rows), features(space, rows)
    quality = cross_validate("gp", known_X, known_y, costs_of(space, known_rows, 1000, 3).macs, 0)
    mean, fixed, corrected, inside = predict_in_turn(known_X, known_y, X, y, quality, learns)
    parts_of = {"all": slice(None), "first 100": slice(100), "last quarter": slice(len(y) * 3 // 4, None)}
    print(f"{len(known)} subnets known from {name}, {len(y)} predicted, in %:")
    print(
        f"  tau {100 * quality.tau:.1f} in cross-validation, {100 * kendalltau(y, mean).statistic:.1f} truly"
    )
    similar = tau_in_bands(y, mean, macs)
    print(f"  tau at similar MACs {100 * quality.tau_in_bands:.1f}, {100 * similar:.1f} truly")
    for kind, center, covered in (("fixed", mean, fixed), ("learning", corrected, inside)):
        parts = []
        for part, which in parts_of.items():
            held, hopeful = covered[which].mean(), (center - y)[which].mean()
            parts.append(f"{part} {100 * held:.0f} ({100 * hopeful:+.3f} points too hopeful)")
        print(f"  held by {kind} intervals: {', '.join(parts)}")


if __name__ == "__main__":
    main()
