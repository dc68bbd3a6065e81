"""Networks as ExecuTorch programs. Run by hand where it is installed: pytest tests/extras.

What every format must do, tests/contracts/test_formats.py tests, also for this one where it is installed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

import export
from engine.command.cli import parse
from engine.errors import UserError
from export.formats import format_of
from export.manifest import read_manifest
from export.onnx import Export


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own imports warn
def test_a_run_becomes_a_program(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", str(trained_run), "--arch", "largest", "--target", "executorch"]
    assert parse(Export, words).execute() == 0
    assert "equal" in capsys.readouterr().out
    path = trained_run / "export" / "largest.pte"
    manifest, content = read_manifest(path), path.read_bytes()
    assert manifest.parity is not None and manifest.parity["relative_error"] < 1e-4
    assert manifest.bytes == len(content)
    assert (path.parent / "largest.executorch.json").is_file()
    _, channels, height, width = manifest.input.shape
    assert format_of(path).open(path)(np.zeros((3, channels, height, width), np.float32)).shape == (3, 10)
    assert parse(Export, words).execute() == 0
    assert path.read_bytes() == content


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_torch_cannot_export_is_a_sentence(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(UserError, match=r"^torch cannot export Branch for ExecuTorch: [^\n]*$"):
        export.to_onnx(Branch().eval(), tmp_path / "x.pte", "executorch", images=torch.randn(2, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_pixels_in_and_probabilities_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(), nn.Linear(144, 5)
    )
    images = torch.randn(4, 3, 8, 8)
    bake = export.Bake((0.5,) * 3, (0.2,) * 3, softmax=True)
    manifest = export.to_onnx(net.eval(), tmp_path / "x.pte", "executorch", images=images, bake=bake)
    assert (manifest.input.dtype, manifest.output.name) == ("uint8", "probabilities")
    assert export.verify_file(tmp_path / "x.pte", net, images, bake=bake).complaint("float32") == ""
    rows = export.benchmark_files([tmp_path / "x.pte"], rounds=2, seconds=0.0)
    assert rows[0]["input"] == "1x8x8x3" and rows[0]["macs"] == manifest.macs


@pytest.mark.filterwarnings("ignore")
def test_a_program_survives_that_the_threads_were_replaced(tmp_path: Path) -> None:
    """A program that was loaded before would use freed memory, which ends the process now and then."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    path = tmp_path / "x.pte"
    export.to_onnx(net, path, "executorch", images=torch.randn(2, 3, 16, 16))
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16), dtype=np.float32)
    executorch = format_of(path)
    run = executorch.open(path)
    wanted = run(x)
    for threads in (1, 2, 1, 3, 2):
        executorch.load(path, threads).run()
        np.testing.assert_allclose(run(x), wanted, rtol=1e-5, atol=1e-6)
