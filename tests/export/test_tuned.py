"""export.onnx takes tuned weights where they fit, and says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.run import digest
from export.manifest import read_manifest
from export.onnx import Export
from ofa.space.arch import smallest
from ofa.trained import TrainedSupernet
from ofa.tune import Tune


@pytest.mark.slow
def test_export_prefers_tuned_weights(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    names = ("selected", "tuned", "export", "report")
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns(*names))
    arch = smallest(TrainedSupernet(run, torch.device("cpu")).space)
    facts = {"arch": arch.model_dump(mode="json"), "macs": 1, "val_accuracy": 0.5}
    (run / "selected").mkdir()
    (run / "selected" / "small.json").write_text(json.dumps(facts))
    assert parse(Tune, ["--run", str(run), "--epochs", "1"]).execute() == 0

    file = run / "export" / "small.onnx"
    assert parse(Export, ["--run", str(run), "--images", "40"]).execute() == 0
    assert "small is tuned for 1 epoch, teacher: largest" in capsys.readouterr().out
    tuned, sha256 = read_manifest(file).architecture["tuned"], digest(file)
    assert (tuned["epochs"], tuned["teacher"]) == (1, "largest")
    assert tuned["supernet_sha256"] == digest(run / "weights.safetensors")

    assert parse(Export, ["--run", str(run), "--images", "40", "--untuned"]).execute() == 0
    assert "tuned" not in read_manifest(file).architecture and digest(file) != sha256
    # The folder itself is a run of one architecture.
    assert parse(Export, ["--run", str(run / "tuned" / "small"), "--images", "40"]).execute() == 0
    alone = read_manifest(run / "tuned" / "small" / "export" / "alone.onnx")
    assert alone.architecture["tuned"] == tuned
