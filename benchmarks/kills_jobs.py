"""What `kills.py` kills: long commands on tiny networks, what they start from, when folders are equal."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import yaml

from engine.checkpoint import load_state
from engine.command.cli import Command
from engine.run import write_json
from export.bundle.__main__ import MakeBundle
from export.onnx import Export
from ofa.convert import Convert
from ofa.train import Train
from ofa.tune import Tune
from oneshot.retrain import Retrain
from oneshot.search import Search
from predictors.collect import Collect
from predictors.select import Select

SPACE = """
resolution: [8, 12]
stem: {width: [4, 8], stride: 1, act: hard_swish}
stages:
  - {width: [8], depth: [1, 2], kernel: [3], expand: [1], stride: 1, act: relu}
  - {width: [8, 16], depth: [1, 2], kernel: [3, 5], expand: [2, 3], stride: 2, se: true, act: hard_swish}
head: {width: [16, 32], expand: 2, act: swish}
"""
# Progressive shrinking with a running average, the last checkpoints kept, and one at each look at the losses.
SHRINKING = {
    "ema": 0.9,
    "evaluate_every": 1,
    "evaluate_random": 1,
    "keep": 2,
    "checkpoint_every": "0.001s",
    "phases": [
        {"name": "largest", "epochs": 1, "lr": 0.2, "subnets": 0, "kernel": 1, "depth": 1, "expand": 1}
        | {"width": 1},
        {"name": "depth", "epochs": 1, "lr": 0.05, "subnets": 1, "expand": 1, "width": 1},
        {"name": "all", "epochs": 1, "lr": 0.05, "subnets": 1},
    ],
}
TRAIN = ["--space", "tiny.yaml", "--calibration-images", "100", "--out", "run"]
SMALL_LANGUAGE = {"hidden": 8, "bptt": 10, "val_batch": 2, "patience": 0}
NODES = [[[operation, state]] for operation, state in (("sigmoid", 0), ("relu", 1), ("tanh", 1))]
RECURRENT = {"space": "recurrent", "cells": {"recurrent": {"nodes": NODES, "output": [1, 2, 3]}}}


class Job(NamedTuple):
    """A long command.

    Args:
        command: its class.
        words: its flags; paths are relative to the folder that it runs in.
        resume: flags that are added to continue it.
        base: which prepared files it starts from: "plain", "trained" or "exported".
        first: flags of a start that is no continuation.
    """

    command: type[Command]
    words: list[str]
    resume: list[str]
    base: str = "plain"
    first: tuple[str, ...] = ()


JOBS = {
    "train, phases and ema": Job(Train, ["--config", "shrinking.yaml", *TRAIN], ["--resume"]),
    "train, replacing a run": Job(
        Train, [*TRAIN, "--epochs", "1", "--seed", "1"], ["--resume"], "trained", ("--overwrite",)
    ),
    "tune": Job(Tune, ["--run", "run", "--epochs", "2", "--evaluate-every", "1"], ["--resume"], "exported"),
    "collect": Job(Collect, ["--run", "run", "--count", "30"], [], "trained"),
    "collect in rounds": Job(Collect, ["--run", "run", "--count", "40", "--rounds", "2"], [], "trained"),
    "select": Job(
        Select, ["--run", "run", "--flops", "40k,80k", "--front", "macs", "--measure", "4"], [], "exported"
    ),
    "search": Job(
        Search,
        [
            *("--channels", "2", "--batch-size", "64", "--space", "nasbench201", "--cells", "1"),
            *("--epochs", "3", "--out", "run"),
        ],
        ["--resume"],
    ),
    "retrain": Job(
        Retrain,
        [
            *("--network.cells", "3", "--network.channels", "2", "--epochs", "2", "--evaluate-every", "1"),
            *("--genotype", "DARTS_V2", "--out", "run"),
        ],
        ["--resume"],
    ),
    "retrain, language": Job(
        Retrain,
        [
            *("--genotype", "cell.json", "--data", "grammar", "--data.sentences", "100"),
            *("--language", json.dumps(SMALL_LANGUAGE), "--epochs", "3", "--batch-size", "8", "--out", "run"),
        ],
        ["--resume"],
    ),
    "convert": Job(
        Convert,
        ["net.pth", "--from", "torchvision", "--data", "npz", "--data.path", "few.npz", "--out", "run"],
        [],
    ),
    "export": Job(Export, ["--run", "run", "--arch", "smallest", "--images", "20"], [], "trained"),
    "bundle": Job(MakeBundle, ["--run", "run"], [], "exported"),
}

Runner = Callable[[Path, type[Command], list[str]], int]


def prepare(base: Path, run: Runner, names: set[str]) -> None:
    """Make the folders "plain", "trained" and "exported" in `base`, those that are asked for."""
    plain = base / "plain"
    if not plain.exists():
        plain.mkdir(parents=True)
        (plain / "tiny.yaml").write_text(SPACE)
        (plain / "shrinking.yaml").write_text(yaml.safe_dump(SHRINKING))
        write_json(plain / "cell.json", RECURRENT)
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 255, (48, 8, 8, 3), np.uint8), np.arange(48) % 12
        np.savez(plain / "few.npz", x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    if not (plain / "net.pth").exists():
        from torchvision.models import resnet18

        torch.manual_seed(0)
        torch.save(resnet18(num_classes=12).state_dict(), plain / "net.pth")
    if "trained" in names | {"exported"} & names and not (base / "trained").exists():
        _step(base, "plain", "trained", run, [(Train, [*TRAIN, "--epochs", "1"])])
    if "exported" in names and not (base / "exported").exists():
        select = ["--run", "run", "--flops", "40k,80k", "--measure", "2"]
        export = ["--run", "run", "--images", "20", "--target", "cpu,mobile"]
        steps = [(Collect, ["--run", "run", "--count", "12"]), (Select, select), (Export, export)]
        _step(base, "trained", "exported", run, steps)


def _step(
    base: Path, before: str, after: str, run: Runner, steps: list[tuple[type[Command], list[str]]]
) -> None:
    work = base / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base / before, work)
    for command, words in steps:
        assert run(work, command, words) == 0, (command.__name__, words)
    work.rename(base / after)


def differences(wanted: Path, got: Path) -> list[str]:
    """What is different in two folders, as sentences; empty if they hold the same results."""
    files = [{str(path.relative_to(folder)) for path in _files(folder)} for folder in (wanted, got)]
    found = [f"{name} is missing" for name in sorted(files[0] - files[1])]
    found += [f"{name} is left over" for name in sorted(files[1] - files[0])]
    for name in sorted(files[0] & files[1]):
        if not _same(wanted / name, got / name):
            found.append(f"{name} differs")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        # Empty folders count, too: they would be left of an unfinished bundle.
        if path.is_file() or not any(path.iterdir()):
            yield path


def _same(wanted: Path, got: Path) -> bool:
    """Whether two files say the same, apart from times, dates and what holds them."""
    match wanted.suffix:
        case ".pt":
            return _same_values(load_state(wanted), load_state(got))
        case ".onnx":
            return _graph(wanted) == _graph(got)
        case ".json" if wanted.name != "env.json":
            return bool(_timeless(json.loads(wanted.read_text())) == _timeless(json.loads(got.read_text())))
        case ".png" | ".svg" | ".html" | ".md" | ".journal" | ".ort":
            return got.stat().st_size > 0
        case ".json":
            return json.loads(wanted.read_text()).keys() == json.loads(got.read_text()).keys()
    return wanted.read_bytes() == got.read_bytes()


def _same_values(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_values(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same_values, a, b))
    return bool(a == b)


def _graph(path: Path) -> bytes:
    """An ONNX file without its metadata, which has a time in it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


def _timeless(value: Any) -> Any:
    """JSON without what two runs cannot have in common."""
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    if not isinstance(value, dict):
        return value
    # `bytes` and `sha256` are of files with a time in them, commands are those of the process.
    outside = {"milliseconds", "bytes", "sha256", "commands", "command"}
    return {name: _timeless(one) for name, one in value.items() if name not in outside}
