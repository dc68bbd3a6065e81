"""On an x86 CPU without VNNI, which QEMU emulates: 8-bit sums saturate, and those of the gate do not.

Needs qemu-x86_64 (Debian's package qemu-user; 7.2 or newer, which knows AVX2) and a machine that is x86.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import export

SCRIPT = """
import sys
from pathlib import Path
from large_sums import write_large_sums
from export.formats.onnx import open_onnxruntime, run_session

path = Path(sys.argv[1])
x, wanted = write_large_sums(path)
for exact in (True, False):
    got = run_session(open_onnxruntime(path, exact), x)
    print("exact" if exact else "fast", int((got != wanted).sum()))
"""


def test_the_gate_sums_exactly_where_the_cpu_does_not(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64 is not installed, or this is no x86 machine")
    words = [qemu, "-cpu", "Haswell", sys.executable, "-c", SCRIPT, str(tmp_path / "sums.onnx")]
    root = Path(export.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")])}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["exact", "0", "fast", "80"]
