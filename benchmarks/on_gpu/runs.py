"""Parts (c) to (f): evaluation of many subnets, and commands as a user types them."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.parts import Context
from engine.command.cli import Command, parse
from engine.data.sources import load_data
from engine.seed import numpy_generator
from ofa.calibration import prepare, subnet_accuracy
from ofa.space.codes import sample
from ofa.space.space import load_space
from ofa.supernet import Supernet
from ofa.train import Train
from oneshot.search import Search

SUBNETS = 200
PUBLISHED_EPOCHS = 50  # of a DARTS search
LAST = 20.0  # seconds that a command needs after its time is over: to evaluate and to save


def evaluation(context: Context) -> dict[str, Any]:
    """Calibrate and measure 200 random subnets of small32, whose weights are random."""
    words = [*context.found.image_flags(), "--device", str(context.device)]
    config = parse(Train, [*words, "--config", "ofa/cifar10"] if context.found.cifar10 else words)
    data = load_data(config.data, context.device, 0)
    space = load_space("digits" if context.found.cifar10 is None else "small32")
    torch.manual_seed(0)
    net = Supernet(space, len(data.classes), data.channels).to(
        context.device, memory_format=torch.channels_last
    )
    rng = numpy_generator(0, "gpu day")
    images = 64 if context.toy else config.calibration_images
    calibrated = measured = 0.0
    count = 0
    torch.cuda.reset_peak_memory_stats()
    while count < (2 if context.toy else SUBNETS) and (count < 2 or context.left() > 1):
        arch = sample(space, rng)
        began = time.monotonic()
        subnet = prepare(net, arch, data, images)
        torch.cuda.synchronize()
        between = time.monotonic()
        subnet_accuracy(subnet, data.evaluation_batches("val"))
        torch.cuda.synchronize()
        if count:  # the first one also starts everything up
            calibrated += between - began
            measured += time.monotonic() - between
        count += 1
    return {
        "subnets": count,
        "of": SUBNETS,
        "space": space.name,
        "images": context.found.named(),
        "calibration_images": images,
        "val_images": data.count("val"),
        "calibrate_ms": 1000 * calibrated / (count - 1),
        "measure_ms": 1000 * measured / (count - 1),
        "seconds_for_200": SUBNETS * (calibrated + measured) / (count - 1),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
    }


def darts_search(context: Context) -> dict[str, Any]:
    """A first-order DARTS search on images, as many epochs as there is time for; 50 are extrapolated."""
    words = ["--method", "darts", "--method.order", "first", *context.found.image_flags()]
    found = _search(context, "darts", words)
    found["minutes_for_50_epochs"] = PUBLISHED_EPOCHS * found["seconds_an_epoch"] / 60
    return found


def gaea_201(context: Context) -> dict[str, Any]:
    """GAEA on NAS-Bench-201 with the settings of its released code."""
    return _search_201(context, "gaea", ["--method", "gaea"])


def gdas_201(context: Context) -> dict[str, Any]:
    """GDAS on NAS-Bench-201, at the published setting."""
    return _search_201(context, "gdas", ["--method", "gdas"])


def _search_201(context: Context, name: str, words: list[str]) -> dict[str, Any]:
    words = [*words, "--space", "nasbench201", *context.found.image_flags()]
    if context.found.table is not None:
        words += ["--table", str(context.found.table)]
    return _search(context, f"{name}_201", words)


def _search(context: Context, name: str, words: list[str]) -> dict[str, Any]:
    out = context.out / "runs" / name
    if context.toy:
        few = ["--channels", "4", "--batch-size", "256", "--epochs", "2", "--evaluate-images", "32"]
        cells = "1" if "nasbench201" in words else "3"
        warm = ["--method.warmup-epochs", "1"] if "darts" in words else []
        words = [*words, *few, *warm, "--cells", cells]
    words = [*words, "--device", str(context.device), "--out", str(out), "--overwrite"]
    status, seconds = _execute(Search, words, context)
    points = _points(out)
    epochs = [point for point in points if "alphas" in point]
    found: dict[str, Any] = {
        "command": "python -m oneshot.search " + " ".join(words),
        "images": context.found.named(),
        "finished": status == 0,
        "seconds": seconds,
        "steps": points[-1]["step"] if points else 0,
        "epochs_done": len(epochs),
    }
    found["seconds_an_epoch"] = _seconds_an_epoch(out, points, len(epochs), seconds)
    if epochs:
        found["genotype"] = json.dumps(epochs[-1]["genotype"])
        # With `true_accuracy`, which the table says, where there is one.
        found["of_epochs"] = [{k: v for k, v in p.items() if isinstance(v, float | int)} for p in epochs]
        found["last"] = found["of_epochs"][-1]
    return found


def supernet(context: Context) -> dict[str, Any]:
    """A supernet for the rest of the time: as many whole epochs as fit, so that its rate falls to the end."""
    out, flags = context.out / "runs" / "supernet", context.found.image_flags()
    base = ["--device", str(context.device), "--out", str(out), "--overwrite"]
    if context.found.cifar10 is None:
        words = [*flags, "--space", "digits", *base]
    else:
        words = ["--config", "ofa/cifar10", *flags, *base]
    if context.toy:
        few = ["--epochs", "1", "--batch-size", "512", "--evaluate-random", "0", "--calibration-images", "64"]
        _, seconds = _execute(Train, [*words, *few], context)
        epochs = 1
    else:
        # One epoch tells how many there is time for.
        _, first = _execute(Train, [*words, "--epochs", "1"], context)
        epochs = max(1, int((context.left() - LAST) / first))
        _, seconds = _execute(Train, [*words, "--epochs", str(epochs)], context)
    accuracies = {}
    for point in _points(out):
        if "arch" in point:
            accuracies[point["arch"]] = point["val_accuracy"]
    return {
        "command": "python -m ofa.train " + " ".join([*words, "--epochs", str(epochs)]),
        "images": context.found.named(),
        "epochs": epochs,
        "seconds": seconds,
        "val_accuracy": accuracies,
    }


def _execute(command: type[Command], words: list[str], context: Context) -> tuple[int, float]:
    """Run a command in this process until its work or its time is over: (exit status, seconds)."""
    if not context.toy:
        words = [*words, "--stop-after", f"{max(10, int(context.left() - LAST))}s"]
    began = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    status = parse(command, words).execute()
    return status, time.monotonic() - began


def _points(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _seconds_an_epoch(out: Path, points: list[dict[str, Any]], epochs: int, seconds: float) -> float:
    """Of a search that may have ended within an epoch; its start is counted, too."""
    if epochs:
        steps_an_epoch = next(point["step"] for point in points if "alphas" in point)
        return seconds / (points[-1]["step"] / steps_an_epoch)
    return float("nan")
