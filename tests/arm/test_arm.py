"""Files on aarch64: the same numbers as here, in an emulator. docs/arm.md says how it is set up.

OFA_ARM is the folder that `setup.sh` filled; without it these tests are skipped.
"""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.command.cli import parse
from export.bundle.__main__ import MakeBundle
from export.manifest import read_manifest
from export.onnx import Export
from export.source import open_export_source

FOLDER = os.environ.get("OFA_ARM", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER, reason="OFA_ARM names no emulated Python")]
NEAR = 1e-6  # of the largest output: float32 kernels of another CPU add in another order
COUNT_RIGHT = """
import sys
import numpy as np
import onnxruntime as ort

known = np.load(sys.argv[2])
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
right = 0
for x, label in zip(known["x"], known["y"]):
    right += int(session.run(None, {"image": x[None]})[0].argmax() == label)
print(right)
"""


def on_arm(*words: str) -> "subprocess.CompletedProcess[str]":
    """A run of the emulated Python."""
    command = [str(Path(FOLDER) / "python"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(trained_run: Path) -> Path:
    """A run with bundled files in float32, in 8 bits and in the flat format."""
    words = ["--run", str(trained_run), "--arch", "largest", "--target", "cpu,cpu-int8,mobile"]
    assert parse(Export, [*words, "--max-drop", "5"]).execute() == 0
    assert parse(MakeBundle, ["--run", str(trained_run), "--selected", "largest"]).execute() == 0
    return trained_run


def test_the_emulator_is_an_arm_machine() -> None:
    assert on_arm("-c", "import platform; print(platform.machine())").stdout.strip() == "aarch64"


def test_every_step_and_output_is_as_bundled(run: Path) -> None:
    done = on_arm(str(run / "export" / "largest" / "classify.py"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        differences = dict(re.findall(r"(\w+) ([\d.e+-]+)(?:,|$)", line.partition("differences: ")[2]))
        assert list(differences) == ["decode", "resize", "crop", "normalise", "output"]
        allowed = 0.0 if "int8" in line else NEAR
        assert float(differences["output"]) <= allowed, line


def test_8_bits_have_the_verified_accuracy(run: Path, tmp_path: Path) -> None:
    path = run / "export" / "largest.cpu-int8.onnx"
    manifest = read_manifest(path)
    assert manifest.accuracy is not None
    source = open_export_source(run, torch.device("cpu"))
    side = int(manifest.input.shape[-1])
    batches = list(source.images("val", side))
    x = np.concatenate([images.numpy() for images, _ in batches])
    y = np.concatenate([labels.numpy() for _, labels in batches])
    np.savez(tmp_path / "images.npz", x=x, y=y)
    (tmp_path / "count.py").write_text(COUNT_RIGHT)
    done = on_arm(str(tmp_path / "count.py"), str(path), str(tmp_path / "images.npz"))
    assert int(done.stdout) == round(manifest.accuracy.file * manifest.accuracy.images), done.stderr
    assert len(y) == manifest.accuracy.images
