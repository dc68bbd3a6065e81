"""A runtime that is not installed is one sentence with the command that installs it."""

import importlib.util
from pathlib import Path

import pytest

from engine.command.cli import parse
from engine.errors import UserError
from export.executorch import ExecuTorch
from export.openvino import OpenVINO


@pytest.mark.parametrize(
    ("command", "words", "package"), [(ExecuTorch, [], "executorch"), (OpenVINO, ["x.onnx"], "openvino")]
)
def test_what_is_not_installed(
    command: type[ExecuTorch | OpenVINO], words: list[str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"is not installed; run pip install 'ofa-toolkit\[{package}\]'"):
        parse(command, words).execute()
    assert not Path("runs/supernet/export").exists()
