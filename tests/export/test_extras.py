"""A runtime that is not installed is one sentence with the command that installs it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from engine.command.cli import parse
from engine.command.install import ROOT
from engine.errors import UserError
from export.onnx import Export
from export.openvino import OpenVINO


@pytest.mark.parametrize(
    ("command", "words", "package"),
    [
        (Export, ["--target", "cpu,executorch"], "executorch"),
        (Export, ["--target", "litert"], "litert"),
        (Export, ["--target", "mlpackage"], "coreml"),
        (Export, ["--target", "ncnn"], "ncnn"),
        (Export, ["--target", "mnn"], "mnn"),
        (Export, ["--target", "qnn-sm8650"], "qnn"),
        (OpenVINO, ["x.onnx"], "openvino"),
    ],
)
def test_what_is_not_installed(
    command: type[Export | OpenVINO],
    words: list[str],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"is not installed; run pip install -e '.*\[{package}\]'"):
        parse(command, words).execute()
    assert not Path("runs/supernet/export").exists()


@pytest.mark.slow
def test_the_command_ends_with_2_and_one_sentence(tmp_path: Path) -> None:
    if importlib.util.find_spec("executorch") is not None:
        pytest.skip("ExecuTorch is installed")
    words = [sys.executable, "-m", "export.onnx", "--target", "executorch", "--run", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    # This is a clone: of an index, "ofa-toolkit" might be anything.
    assert (
        done.stderr.strip() == f"error: ExecuTorch is not installed; run pip install -e '{ROOT}[executorch]'."
    )
