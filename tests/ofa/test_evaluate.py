"""ofa.evaluate: accuracy with its error, balanced, and class by class."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from engine.command.cli import parse
from engine.errors import UserError
from ofa.evaluate import Evaluate
from ofa.space.arch import largest, smallest
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


def test_names_are_told_apart_in_a_narrow_terminal(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    space = TrainedSupernet(run, torch.device("cpu")).space
    named = {"1M": largest(space), "2.5M": smallest(space)}
    elsewhere = tmp_path / ("long" * 10) / "1M.json"
    for folder in (run / "selected", elsewhere.parent):
        folder.mkdir()
        for name, arch in named.items():
            (folder / f"{name}.json").write_text(json.dumps({"arch": arch.model_dump()}))

    def said(*archs: str) -> str:
        words = ["--run", str(run), "--arch", ",".join(archs), "--device", "cpu"]
        assert parse(Evaluate, words).execute() == 0
        return capsys.readouterr().out

    # A budget is named as in selected/, and a file is called by its name.
    by_name = said("1M", "2.5M", "smallest")
    assert by_name == said(str(run / "selected" / "1M.json"), str(run / "selected" / "2.5M.json"), "smallest")
    assert re.findall(r"^│ (\S+) ", by_name, re.M) == ["1M", "2.5M", "smallest"]
    # As a terminal of 80 columns: every letter of two files of one name is there, over several lines.
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    cells = re.findall(r"^│ (\S+) ", said("1M", str(elsewhere)), re.M)
    assert str(elsewhere) in "".join(cells)
    with pytest.raises(UserError, match=r"no architecture '3M'; give smallest, largest, 1M, 2.5M, a file of"):
        said("3M")


def _evaluated(run: Path) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        words = ["--run", str(run), "--split", "test", "--device", "cpu"]
        assert parse(Evaluate, words).execute() == 0
    return printed.getvalue()


def test_two_ranks_evaluate_what_one_process_does(pair: Callable[..., list[str]], trained_run: Path) -> None:
    first, second = pair(_evaluated, trained_run)
    assert (first, second) == (_evaluated(trained_run), "")
