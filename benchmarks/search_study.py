"""What each search method finds on a small NAS-Bench-201 search, and what the benchmark says it is worth.

    python benchmarks/search_study.py --data cifar10.npz --table accuracy_200_epochs.csv --out study --seeds 3

The space and the methods are the published ones; the search network (8 channels, 1 cell a stage), the images
(16 px) and their number are not, so the numbers compare methods at this scale only. Adam's rate for the
architecture is ten times the published one, since there are fifteen times fewer steps. Finished searches are
not run again.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from engine.run import read_json, read_lines
from oneshot.nasbench201.codes import to_string
from oneshot.nasbench201.table import AccuracyTable
from oneshot.spaces.genotype import Genotype

ADAM = ["--method.geometry.lr", "0.003"]
METHODS = {
    "darts": ADAM,
    "darts second order": ["--method", "darts", "--method.order", "second", *ADAM],
    "pc_darts": [*ADAM, "--method.warmup-epochs", "6"],
    "beta_darts": ADAM,
    "gaea single level": ["--method", "gaea", "--method.sgd.cosine-epochs", "40"],
    "gaea bilevel": ["--method", "gaea", "--method.level", "bilevel"],
    "gdas": ADAM,
    "darts_minus": ADAM,
    "pr_darts without its penalty": ["--method", "pr_darts", "--method.penalties", "[]", *ADAM],
    "random_ws": ["--method.candidates", "200", "--method.batches", "8"],
}


def small_images(source: Path, target: Path, count: int) -> None:
    """The first `count` training and 1,000 test images at half the size."""
    found = np.load(source)
    half = {
        f"x_{s}": found[f"x_{s}"][:n].reshape(n, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)
        for s, n in (("train", count), ("test", 1000))
    }
    np.savez(target, **half, y_train=found["y_train"][:count], y_test=found["y_test"][:1000])


def search(name: str, flags: list[str], seed: int, data: Path, table: Path, out: Path, epochs: int) -> float:
    """Run it unless it is done; seconds."""
    if (out / "DONE").exists():
        return float((out / "seconds").read_text())
    named = [] if "--method" in flags else ["--method", name]
    fixed = [
        "--space",
        "nasbench201",
        "--channels",
        "8",
        "--cells",
        "1",
        "--batch-size",
        "64",
        "--epochs",
        str(epochs),
        "--threads",
        "1",
    ]
    source = ["--data", "npz", "--data.path", str(data), "--table", str(table), "--evaluate-images", "500"]
    command = [
        sys.executable,
        "-m",
        "oneshot.search",
        *named,
        *flags,
        *fixed,
        *source,
        "--seed",
        str(seed),
        "--out",
        str(out),
        "--overwrite",
    ]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - start
    (out / "seconds").write_text(str(seconds))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--table", type=Path, required=True, help="NAS-Bench-201 results, CSV")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and study.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=8000, help="training images; half of them for the architecture"
    )
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    images = given.out / "images.npz"
    if not images.exists():
        small_images(given.data, images, given.images)
    table = AccuracyTable.read(given.table)
    rows = []
    for seed in range(given.seeds):
        for name, flags in METHODS.items():
            out = given.out / f"{name.replace(' ', '_')}-{seed}"
            seconds = search(name, flags, seed, images, given.table, out, given.epochs)
            genotype = Genotype.model_validate(read_json(out / "genotype.json"))
            skips = [
                point["skips"]["cell"] for point in read_lines(out / "metrics.jsonl") if "skips" in point
            ]
            truth = [
                table.accuracy(genotype, dataset) for dataset in ("cifar10", "cifar100", "imagenet16-120")
            ]
            row = [
                name,
                seed,
                *(f"{value:.2f}" for value in truth),
                skips[len(skips) // 2 - 1],
                skips[-1],
                f"{seconds:.0f}",
                to_string(genotype),
            ]
            rows.append(row)
            print(*row, sep="  ", flush=True)
            with (given.out / "study.csv").open("w", newline="") as file:
                header = [
                    "method",
                    "seed",
                    "cifar10",
                    "cifar100",
                    "imagenet16-120",
                    "skips at half",
                    "skips at the end",
                    "seconds",
                    "cell",
                ]
                csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
