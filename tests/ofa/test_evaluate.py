"""ofa.evaluate: accuracy with its error, balanced, and class by class."""

import csv
import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from engine.command.cli import parse
from ofa.evaluate import Evaluate
from ofa.space.arch import smallest
from ofa.trained import TrainedSupernet


def test_every_class_is_listed_and_written(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    words = ["--run", str(run), "--arch", "smallest", "--split", "test", "--device", "cpu", "--per-class"]
    assert parse(Evaluate, words).execute() == 0
    said = capsys.readouterr().out
    with (run / "confusion" / "smallest-test.csv").open() as file:
        counts = np.array([[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]])
    assert (run / "confusion" / "smallest-test.png").exists()
    trained = TrainedSupernet(run, torch.device("cpu"))
    arch = smallest(trained.space)
    assert counts.trace() / counts.sum() == pytest.approx(trained.accuracy(arch, "test"))
    subnet = trained.subnet(arch)
    labels, taken_for = [], []
    with torch.no_grad():
        for x, y in trained.data.batches("test", 64):
            labels += y.tolist()
            x = torch.nn.functional.interpolate(x, arch.resolution, mode="bicubic")
            taken_for += subnet(x).argmax(1).tolist()
    assert f"{balanced_accuracy_score(labels, taken_for):.2%}" in said
    assert "on 539 images; ±: one standard error" in said and "most often taken for" in said


def _evaluated(run: Path) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        words = ["--run", str(run), "--split", "test", "--device", "cpu"]
        assert parse(Evaluate, words).execute() == 0
    return printed.getvalue()


def test_two_ranks_evaluate_what_one_process_does(pair: Callable[..., list[str]], trained_run: Path) -> None:
    first, second = pair(_evaluated, trained_run)
    assert (first, second) == (_evaluated(trained_run), "")
