"""What each search method finds on a small NAS-Bench-201 search, and what the benchmark says it is worth.

    python benchmarks/search_study.py --data cifar10.npz --table accuracy_200_epochs.csv --out study --seeds 6

The space and the methods are the published ones; the search network (8 channels, 1 cell a stage), the images
(16 px) and their number are not, so the numbers compare methods at this scale only. Adam's rate for the
architecture is thirty times the published one, since there are so few steps. Every method makes the same
number of steps of the weights. Random search is random_ws: it makes as many, on cells drawn at random, and
takes the best of 100 by shared weights. Methods are compared with it seed by seed: a seed fixes images, their
halves and the first weights.

Finished searches are not run again, so that a study which was stopped goes on, and more seeds or methods are
added to it. `study.csv` has a row for each search, `summary.md` the table of means.
"""

import argparse
import contextlib
import csv
import io
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

from engine.command.cli import parse
from engine.run import read_json, read_lines
from oneshot.nasbench201.codes import to_string
from oneshot.nasbench201.table import AccuracyTable
from oneshot.search import Search
from oneshot.spaces.genotype import Genotype

DATASETS = ("cifar10", "cifar100", "imagenet16-120")
REFERENCE = "random_ws"
EPOCHS = 6
ADAM = ["--method.geometry.lr", "0.01"]
GAEA_EPOCHS = ["--epochs", str(EPOCHS // 2), "--method.sgd.cosine-epochs", str(EPOCHS)]
# What differs from the method's published settings on this space. Warm-ups and cosines keep their share of
# the epochs.
METHODS = {
    "random_ws": ["--method.candidates", "100", "--method.batches", "8"],
    "darts": ADAM,
    "pc_darts": [*ADAM, "--method.warmup-epochs", "2"],
    "beta_darts": ADAM,
    # Their epochs are twice as long, since they train on both halves of the images.
    "gaea single level": ["--method", "gaea", "--method.level", "single", *GAEA_EPOCHS],
    "gaea released": ["--method", "gaea", "--method.level", "released", *GAEA_EPOCHS],
    "gaea bilevel": ["--method", "gaea", "--method.level", "bilevel", "--method.sgd.cosine-epochs", "12"],
    "gdas": ADAM,
    "darts_minus": ADAM,
    "pr_darts without its penalty": ["--method", "pr_darts", "--method.penalties", "[]", *ADAM],
    "snas": ADAM,
    "fair_darts": ADAM,
    "sdarts": ADAM,
    "lambda_darts": ADAM,
    "oles": ADAM,
    "darts second order": ["--method", "darts", "--method.order", "second", *ADAM],
}
FIXED = ["--space", "nasbench201", "--channels", "8", "--cells", "1", "--batch-size", "32", "--threads", "1"]


class Found(NamedTuple):
    """A search that has ended: what it found and what that is worth."""

    method: str
    seed: int
    accuracy: list[float]  # % on each of DATASETS, after 200 epochs of training
    skips: tuple[int, int]  # at half of the epochs, and at the end
    seconds: float  # of CPU
    cell: str


def small_images(source: Path, target: Path, count: int) -> None:
    """The first `count` training and 1,000 test images at half the size."""
    found = np.load(source)
    arrays = {}
    for subset, images in (("train", count), ("test", 1000)):
        blocks = found[f"x_{subset}"][:images].reshape(images, 16, 2, 16, 2, 3)
        arrays[f"x_{subset}"] = blocks.mean((2, 4)).round().astype(np.uint8)
        arrays[f"y_{subset}"] = found[f"y_{subset}"][:images]
    np.savez(target, **arrays)


def search(name: str, seed: int, images: Path, table: Path, out: Path) -> None:
    """Run the search unless it is done."""
    if (out / "DONE").exists():
        return
    flags = METHODS[name]
    named = [] if "--method" in flags else ["--method", name]
    epochs = [] if "--epochs" in flags else ["--epochs", str(EPOCHS)]
    source = ["--data", "npz", "--data.path", str(images), "--table", str(table), "--evaluate-images", "100"]
    folder = ["--seed", str(seed), "--out", str(out), "--overwrite"]
    words = [*named, *flags, *epochs, *FIXED, *source, *folder]
    before = time.process_time()
    # All in this process: to start another one costs a fifth of such a short search.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = parse(Search, words).execute()
    if status:
        sys.exit(status)
    (out / "seconds").write_text(str(time.process_time() - before))


def found(name: str, seed: int, out: Path, table: AccuracyTable) -> Found:
    """What the finished search in the folder `out` found."""
    genotype = Genotype.model_validate(read_json(out / "genotype.json"))
    skips = [point["skips"]["cell"] for point in read_lines(out / "metrics.jsonl") if "skips" in point]
    return Found(
        method=name,
        seed=seed,
        accuracy=[table.accuracy(genotype, dataset) for dataset in DATASETS],
        skips=(skips[len(skips) // 2 - 1], skips[-1]),
        seconds=float((out / "seconds").read_text()),
        cell=to_string(genotype),
    )


def write_rows(path: Path, searches: list[Found]) -> None:
    """One row for each search."""
    header = ["method", "seed", *DATASETS, "skips at half", "skips at the end", "CPU seconds", "cell"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for one in searches:
            accuracy = [f"{value:.2f}" for value in one.accuracy]
            writer.writerow([one.method, one.seed, *accuracy, *one.skips, f"{one.seconds:.0f}", one.cell])


def paired(searches: list[Found], method: str, dataset: int) -> tuple[list[float], list[float]]:
    """Accuracies of `method` and of the reference on the seeds that both have."""
    accuracy = {(one.method, one.seed): one.accuracy[dataset] for one in searches}
    seeds = sorted({one.seed for one in searches if (one.method, one.seed) in accuracy})
    both = [seed for seed in seeds if (method, seed) in accuracy and (REFERENCE, seed) in accuracy]
    return [accuracy[method, seed] for seed in both], [accuracy[REFERENCE, seed] for seed in both]


def tests(ours: list[float], theirs: list[float]) -> str:
    """Difference of the means, and the p values of the paired t test and of Wilcoxon's, both two-sided."""
    if len(ours) < 2 or ours == theirs:
        return "| | | "
    difference = fmean(ours) - fmean(theirs)
    t, rank = ttest_rel(ours, theirs).pvalue, wilcoxon(ours, theirs).pvalue
    return f"| {difference:+.2f} | {t:.3f} | {rank:.3f} "


def summary(searches: list[Found], table: AccuracyTable) -> str:
    """The table of means and standard deviations, best mean first, and of the tests on CIFAR-10."""
    lines = [
        "| method | seeds | CIFAR-10 | CIFAR-100 | ImageNet16-120 | less random search | p (t) "
        "| p (Wilcoxon) | skips | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Found]] = {}
    for one in searches:
        groups.setdefault(one.method, []).append(one)
    for method, group in sorted(groups.items(), key=lambda item: -fmean(one.accuracy[0] for one in item[1])):
        cells = ""
        for dataset in range(len(DATASETS)):
            values = [one.accuracy[dataset] for one in group]
            spread = stdev(values) if len(values) > 1 else 0
            cells += f"| {fmean(values):.2f} ± {spread:.2f} "
        skips, seconds = fmean(one.skips[1] for one in group), fmean(one.seconds for one in group)
        compared = tests(*paired(searches, method, 0))
        lines.append(f"| {method} | {len(group)} {cells}{compared}| {skips:.1f} | {seconds:.0f} |")
    values = [np.asarray(table.accuracies(dataset)) for dataset in DATASETS]
    drawn = " | ".join(f"{value.mean():.2f} ± {value.std():.2f}" for value in values)
    best = " | ".join(f"{value.max():.2f}" for value in values)
    lines.append(f"| a cell drawn from the table | all | {drawn} | | | | | |")
    lines.append(f"| the best in the table | | {best} | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--table", type=Path, required=True, help="NAS-Bench-201 results, CSV")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, study.csv and summary.md")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--images", type=int, default=4000, help="training images; half of them for the architecture"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    images = given.out / "images.npz"
    if not images.exists():
        small_images(given.data, images, given.images)
    table = AccuracyTable.read(given.table)
    searches = []
    # Seed by seed: a study that is stopped has as many of each method.
    for seed in range(given.seeds):
        for name in METHODS:
            out = given.out / f"{name.replace(' ', '_')}-{seed}"
            if name in given.methods:
                search(name, seed, images, given.table, out)
            if not (out / "DONE").exists():
                continue
            searches.append(found(name, seed, out, table))
            print(name, seed, *(f"{value:.2f}" for value in searches[-1].accuracy), flush=True)
            write_rows(given.out / "study.csv", searches)
            (given.out / "summary.md").write_text(summary(searches, table))
    print(summary(searches, table))


if __name__ == "__main__":
    main()
