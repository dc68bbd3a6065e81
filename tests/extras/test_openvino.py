"""Exported files in OpenVINO. Run by hand where it is installed: pytest tests/extras."""

from pathlib import Path

import pytest

pytest.importorskip("openvino")

from engine.command.cli import parse
from export.onnx import Export
from export.openvino import OpenVINO


def test_files_are_the_same_in_openvino(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--run", str(trained_run), "--arch", "largest"]
    words = [*network, "--target", "cpu,nnapi,cpu-int8", "--max-drop", "5"]
    assert parse(Export, words).execute() == 0
    files = [
        str(trained_run / "export" / name)
        for name in ("largest.onnx", "largest.nnapi.onnx", "largest.cpu-int8.onnx")
    ]
    assert parse(OpenVINO, files).execute() == 0
    assert capsys.readouterr().out.count("equal") >= 3
