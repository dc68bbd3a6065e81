"""What a supernet is worth: K budgets from one supernet against K networks trained alone, at equal CPU time.

    python benchmarks/worth.py --name digits --out runs/worth
    python benchmarks/worth.py --name cifar3k --cifar cifar10.npz --out runs/worth
    python benchmarks/worth.py --name flowers --flowers FOLDER --out runs/worth
    python benchmarks/worth.py --name mine --range 5M,30M --train "--config recipe.yaml --data.path photos"
    python benchmarks/worth.py --name start --range 31M,126M --original efficientnet_lite0 \
        --train "--config ofa/finetune --init runs/start --data.path photos"
    python benchmarks/worth.py --out runs/worth --write docs/worth.md --picture docs/worth.svg

The way: train, collect, select K budgets, tune them; docs/worth.md says what is compared, and how. Every part
has a folder of its own and a JSON result: the same command continues where it stopped. The last form trains
nothing; it makes the table and the picture from all results in `--out`.
"""

import argparse
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from worth_table import draw, read_results, table

from engine.command.cli import parse
from engine.config import format_count, parse_count
from engine.run import read_json, write_json
from engine.runs.writing import atomic
from engine.seed import numpy_generator
from ofa.space.arch import Arch
from ofa.space.published import published
from ofa.space.space import load_space
from ofa.train import Train
from ofa.trained import TrainedSupernet, load_network

ALONE = Path(__file__).resolve().with_name("alone.py")
TABLE = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.DOTALL)
CIFAR = {"cifar3k": 3_000, "cifar10k": 10_000}  # training images
CIFAR_TEST = 5_000  # test images
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Job(NamedTuple):
    """A data set and how its supernet is trained.

    words: flags of ofa.train.
    budgets: the lowest and the highest budget, in MACs; those between them count where as many are compared.
    """

    name: str
    words: list[str]
    budgets: tuple[int, ...]


# Few images want small steps, and the largest network first: docs/training.md. Calibration on 2,000 images is
# most of the time of collecting; against 300 validation images it does not matter whether it is on 512.
CIFAR_WORDS = shlex.split(
    "--config ofa/cifar10 --epochs 16 --batch-size 32 --sgd.lr 0.1 --calibration-images 512 "
    "--no-sandwich.smallest --sandwich.largest-first 0.8"
)
PRESETS = {
    "digits": Job("digits", ["--config", "ofa/digits"], (100_000, 2_000_000)),
    "cifar3k": Job("cifar3k", CIFAR_WORDS, (2_000_000, 8_000_000)),
    "cifar10k": Job("cifar10k", CIFAR_WORDS, (2_000_000, 8_000_000)),
    "flowers": Job("flowers", ["--config", "ofa/imagefolder"], (5_000_000, 30_000_000)),
}


def job_of(args: argparse.Namespace) -> Job:
    """The preset of `--name`, or a job of the user's own, with the flags given laid over it."""
    low_high = tuple(parse_count(word) for word in args.range.split(",")) if args.range else None
    job = PRESETS.get(args.name)
    if job is None:
        if low_high is None or not args.train:
            sys.exit(f"'{args.name}' is none of {', '.join(PRESETS)}; say more with --train and --range.")
        job = Job(args.name, [], low_high)
    words = [*job.words]
    needed = "cifar" if args.name in CIFAR else args.name
    if needed in ("cifar", "flowers") and getattr(args, needed) is None:
        sys.exit(f"'{args.name}' needs its images; name them with --{needed}.")
    if args.name in CIFAR:
        words += ["--data.path", str(cifar_subset(args.cifar, CIFAR[args.name], args.out))]
    if args.name == "flowers":
        words += ["--data.path", str(args.flowers.resolve())]
    words += shlex.split(args.train)
    # Processes that decode images would not count for the networks alone, which are timed from within.
    if hasattr(parse(Train, [*words, "--out", str(args.out)]).data, "workers"):
        words += ["--data.workers", "0"]
    return Job(job.name, words, low_high or job.budgets)


def cifar_subset(source: Path, count: int, out: Path) -> Path:
    """A file of `count` training images and CIFAR_TEST test images of CIFAR-10, always the same."""
    path = (out / f"cifar{count}.npz").resolve()
    if not path.exists():
        found = np.load(source)
        arrays = {}
        for split, size in (("train", count), ("test", CIFAR_TEST)):
            labels = found[f"y_{split}"]
            chosen = numpy_generator(0, "worth", split).permutation(len(labels))[:size]
            arrays |= {f"x_{split}": found[f"x_{split}"][chosen], f"y_{split}": labels[chosen]}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return path


def budgets_of(job: Job, count: int) -> list[str]:
    """So many budgets, evenly spread on a logarithmic scale; a single one lies in the middle.

    Where the job names as many, it is those.
    """
    if len(job.budgets) == count:
        return [format_count(budget, 2) for budget in job.budgets]
    low, high = job.budgets[0], job.budgets[-1]
    shares = np.linspace(0, 1, count) if count > 1 else [0.5]
    return [format_count(low * (high / low) ** share, 2) for share in shares]


def run_part(folder: Path, name: str, words: Sequence[str]) -> dict[str, Any]:
    """Run a command unless it is done, and return what name.json says of it: CPU seconds and exit status.

    Time of an interrupted attempt counts, too.
    """
    path = folder / f"{name}.json"
    part = read_json(path) if path.exists() else {"cpu_seconds": 0.0, "status": None}
    if part["status"] == 0:
        return part
    folder.mkdir(parents=True, exist_ok=True)
    # Of the same clone, wherever the command is started and whatever is installed.
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ALONE.parents[1])}
    before, started = _children_cpu(), time.monotonic()
    try:
        with (folder / f"{name}.log").open("a") as log:
            done = subprocess.run(
                [sys.executable, *words], stdout=log, stderr=log, check=False, env=environment
            )
        part["status"] = done.returncode
    finally:
        part["cpu_seconds"] += _children_cpu() - before
        part["command"] = shlex.join(["python", *words])
        write_json(path, part)
    seconds = time.monotonic() - started
    print(f"  {folder.name} {name}: {part['cpu_seconds']:.0f} s of CPU, {seconds:.0f} s", flush=True)
    return part


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def require(part: dict[str, Any], folder: Path) -> float:
    """The CPU seconds of a part that must have succeeded."""
    if part["status"] != 0:
        sys.exit(f"failed: {part['command']}; see the .log in {folder}, then start again to continue.")
    return float(part["cpu_seconds"])


def train_supernet(job: Job, seed: int, folder: Path, args: argparse.Namespace) -> float:
    """Train and collect in folder/supernet; return the CPU seconds."""
    run = str(folder / "supernet")
    fixed = ["--seed", str(seed), "--threads", "1"]
    train = run_part(folder, "train", ["-m", "ofa.train", *job.words, *fixed, "--out", run, "--resume"])
    seconds = require(train, folder)
    words = ["-m", "predictors.collect", "--run", run, "--count", str(args.count), *fixed]
    return seconds + require(run_part(folder, "collect", words), folder)


def select_and_tune(run: Path, seed: int, names: list[str], folder: Path, args: argparse.Namespace) -> float:
    """Select and tune subnets for the budgets in a copy of the run; return the CPU seconds."""
    # A copy for each K: what a selection measured would otherwise be free for the next one.
    copy = folder / "supernet"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run, folder / ".copy", dirs_exist_ok=True)
        (folder / ".copy").rename(copy)
    fixed, budgets = ["--run", str(copy), "--seed", str(seed), "--threads", "1"], ",".join(names)
    words = ["-m", "predictors.select", *fixed, "--flops", budgets, *shlex.split(args.select)]
    seconds = require(run_part(folder, "select", words), folder)
    if args.no_tune:
        return seconds
    words = ["-m", "ofa.tune", *fixed, "--selected", budgets, "--resume", *shlex.split(args.tune)]
    return seconds + require(run_part(folder, "tune", words), folder)


def networks_alone(folder: Path, budget: str, original: str | None) -> dict[str, list[str]]:
    """The networks that are trained alone for a budget: by kind, the flags of alone.py that name them."""
    if original is None:
        arch = folder / "supernet" / "selected" / f"{budget}.json"
        resolution = read_json(arch)["arch"]["resolution"]
        return {
            "arch": ["--arch", str(arch)],
            "mobilenet": ["--mobilenet", budget, "--resolution", str(resolution)],
        }
    # What a user does who has weights of one network: the same network on smaller images.
    _, supernet = load_network(folder / "supernet")
    values = published(load_space(original))[original].arch.model_dump()
    sizes = []
    for resolution in supernet.space.resolution:
        arch_there = Arch.model_validate(values | {"resolution": resolution})
        if supernet.cost(arch_there)[0] <= parse_count(budget):
            sizes.append(arch_there)
    if not sizes:
        sys.exit(f"'{original}' has more than {budget} MACs at every resolution of the space.")
    return {"original": ["--arch", sizes[-1].model_dump_json()]}


def train_alone(
    job: Job, seed: int, folder: Path, budget: str, cpu_seconds: float, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Train the networks of a budget, each for `cpu_seconds`; return their results by kind."""
    found = {}
    for kind, words in networks_alone(folder, budget, args.original).items():
        out = folder / f"{budget}-{kind}"
        limits = ["--cpu-seconds", f"{cpu_seconds:.1f}", "--most-epochs", str(args.alone_cap)]
        fixed = ["--seed", str(seed), "--threads", "1", "--out", str(out), "--resume"]
        part = run_part(folder, f"alone-{budget}-{kind}", [str(ALONE), *job.words, *words, *limits, *fixed])
        # 2: no MobileNetV3 is so small.
        if kind != "mobilenet" or part["status"] != 2:
            require(part, folder)
            found[kind] = read_json(out / "result.json")
    return found


def test_accuracies(run: Path, budget: str) -> dict[str, Any]:
    """Test accuracy of a selected subnet as it was taken from the supernet, and tuned if it was."""
    trained = TrainedSupernet(run, torch.device("cpu"))
    record = read_json(run / "selected" / f"{budget}.json")
    subnet = Arch.model_validate(record["arch"])
    found = {"macs": record["macs"], "taken": trained.accuracy(subnet, "test")}
    tuned = run / "tuned" / budget
    if tuned.exists():
        own = TrainedSupernet(tuned, torch.device("cpu"))
        assert own.model.arch is not None
        found["tuned"] = own.accuracy(own.model.arch, "test")
    return found


def compare(job: Job, seed: int, count: int, shared: float, folder: Path, args: argparse.Namespace) -> None:
    """Compare `count` budgets and write result.json."""
    result = folder / "result.json"
    if result.exists():
        return
    names = budgets_of(job, count)
    way = shared + select_and_tune(folder.parent / "supernet", seed, names, folder, args)
    # Evenly spread, the ends among them: what is left out saves the time of two trainings.
    most = min(args.compared or count, count)
    compared = [names[round(i)] for i in (np.linspace(0, count - 1, most) if most > 1 else [(count - 1) / 2])]
    rows = []
    for i, budget in enumerate(compared):
        left = 2 * (len(compared) - i) * way / count / 60
        print(f"  K={count}: {budget}, at most {left:.0f} CPU minutes left of this K", flush=True)
        alone = train_alone(job, seed, folder, budget, way / count, args)
        kind = max(alone, key=lambda name: alone[name]["val_accuracy"])
        measured = test_accuracies(folder / "supernet", budget)
        mine = measured.get("tuned", measured["taken"])
        points = 100 * (mine - alone[kind]["test_accuracy"])
        rows.append({"budget": budget, **measured, "alone": alone, "counts": kind, "points": points})
    facts = {"name": job.name, "seed": seed, "budgets": count, "cpu_seconds": way, "tuned": not args.no_tune}
    write_json(result, facts | {"rows": rows})


def report(args: argparse.Namespace) -> None:
    """Print the table, and write it and the picture where the flags say."""
    lines = read_results(args.out)
    if not lines:
        sys.exit(f"'{args.out}' has no result yet; name a data set with --name.")
    text = table(lines)
    print(text)
    if args.write:
        page = args.write.read_text(encoding="utf-8")
        filled, places = TABLE.subn(lambda match: f"{match[1]}\n{text}\n{match[2]}", page)
        if places != 1:
            sys.exit(f"'{args.write}' needs one <!-- table --> and one <!-- end of table --> after it.")
        with atomic(args.write) as temporary:
            temporary.write_text(filled, encoding="utf-8")
    if args.picture:
        draw(lines, args.picture)


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", help=f"{', '.join(PRESETS)}, or a name of your own with --train and --range")
    add("--out", type=Path, default=Path("runs/worth"), help="folder for all parts")
    add("--cifar", type=Path, help="CIFAR-10 as .npz, for cifar3k and cifar10k")
    add("--flowers", type=Path, help="folder with train/ and test/, for flowers")
    add("--train", default="", help="further flags of ofa.train, in one word")
    add("--select", default="", help="further flags of predictors.select, in one word")
    add("--tune", default="", help="further flags of ofa.tune, in one word")
    add(
        "--original",
        help="with --init among the flags of --train: the family of that start, whose published network "
        "is tuned alone, at the resolutions that keep the budgets",
    )
    add("--no-tune", action="store_true", help="take subnets as they are")
    add("--range", help="lowest and highest budget in MACs, such as 5M,30M; or all")
    add("--budgets", default="1,3,6,12", help="numbers of budgets K")
    add("--compared", type=int, help="compare at most so many budgets of each K; none: all")
    add("--count", type=int, default=50, help="subnets to collect")
    add("--seeds", default="0,1,2")
    add("--alone-cap", type=int, default=300, help="networks alone train for at most so many epochs")
    add("--write", type=Path, help="Markdown page whose table is filled")
    add("--picture", type=Path, help="picture to draw, .svg or .png")
    return parser


def main() -> None:
    args = flags().parse_args()
    args.out = args.out.resolve()
    if args.name:
        job = job_of(args)
        for seed in map(int, args.seeds.split(",")):
            folder = args.out / job.name / f"seed{seed}"
            print(f"{job.name}, seed {seed}", flush=True)
            shared = train_supernet(job, seed, folder, args)
            for count in map(int, args.budgets.split(",")):
                compare(job, seed, count, shared, folder / f"k{count}", args)
    report(args)


if __name__ == "__main__":
    # One thread for this process and all that it starts, so that CPU time is the time of the work.
    torch.set_num_threads(1)
    main()
