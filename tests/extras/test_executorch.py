"""Networks as ExecuTorch programs. Run by hand where it is installed: pytest tests/extras."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("executorch")

from engine.command.cli import parse
from export.executorch import ExecuTorch, run_pte


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own imports warn
def test_a_program_is_the_same_in_executorch(trained_run: Path) -> None:
    assert parse(ExecuTorch, ["--run", str(trained_run), "--arch", "largest"]).execute() == 0
    path = trained_run / "export" / "largest.pte"
    manifest = json.loads((path.parent / "largest.executorch.json").read_text())
    assert manifest["parity"]["relative_error"] < 1e-4
    assert manifest["bytes"] == path.stat().st_size
    size = manifest["preprocessing"]["resize"][0]
    assert run_pte(path, np.zeros((3, 1, size, size), np.float32)).shape == (3, 10)
