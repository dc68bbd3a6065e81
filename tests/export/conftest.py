"""Runs exported once for all who look at them, their bundles, and networks with statistics that are not 0 and
1."""

import json
import shutil
import warnings
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

from engine.command.cli import parse
from export.benchmark.__main__ import Benchmark
from export.bundle.__main__ import MakeBundle
from export.onnx import Export
from ofa.space.arch import smallest
from ofa.trained import TrainedSupernet

M = TypeVar("M", bound=nn.Module)
TARGETS = "cpu,nnapi,cpu-int8,mobile,fp16"


@pytest.fixture(scope="session")
def exported(trained_run: Path) -> Path:
    """The export folder of a run with its largest subnet for every kind of target."""
    words = ["--run", str(trained_run), "--arch", "largest", "--target", TARGETS, "--max-drop", "5"]
    assert parse(Export, words).execute() == 0
    return trained_run / "export"


@pytest.fixture(scope="session")
def bundled_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `60k` (chosen by selection; .onnx for CPUs, timed, and .ort) and `largest` (takes pixels, gives
    probabilities)."""
    run = tmp_path_factory.mktemp("bundled") / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("selected", "export", "report"))
    trained = TrainedSupernet(run, torch.device("cpu"))
    arch = smallest(trained.space)
    limit = {"name": "macs", "limit": 60_000, "value": trained.cost(arch)[0], "unit": ""}
    facts = {
        "arch": arch.model_dump(mode="json"),
        "macs": limit["value"],
        "predicted_accuracy": 0.5,
        "expected_accuracy": 0.375,
        "val_accuracy": 0.25,
        "pairs": 12,
    }
    (run / "selected").mkdir()
    (run / "selected" / "60k.json").write_text(json.dumps(facts | {"constraints": [limit]}))
    words = ["--run", str(run), "--images", "40"]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # onnxruntime's converter to .ort leaves a file to be closed by the collector
        assert parse(Export, [*words, "--selected", "60k", "--target", "cpu,mobile"]).execute() == 0
    assert parse(Export, [*words, "--arch", "largest", "--bake", "normalize", "--softmax"]).execute() == 0
    assert (
        parse(Benchmark, [str(run / "export" / "60k.onnx"), "--rounds", "2", "--seconds", "0"]).execute() == 0
    )
    assert parse(MakeBundle, ["--run", str(run)]).execute() == 0
    return run
