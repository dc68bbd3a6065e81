"""On an x86 CPU without VNNI, which QEMU emulates: 8-bit sums saturate, and those of the gate do not.

Needs qemu-x86_64 (Debian's package qemu-user; 7.2 or newer, which knows AVX2) and a machine that is x86.
"""

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
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from export.formats.onnx import open_onnxruntime, run_session

rng = np.random.default_rng(0)
x = rng.integers(200, 256, (5, 64), dtype=np.uint8)
weight = rng.integers(100, 128, (64, 16), dtype=np.int8)
scalars = {"one": np.float32(1), "sums": np.float32(10_000), "u8": np.uint8(0), "s8": np.int8(0)}
constants = [numpy_helper.from_array(weight, "weight")]
constants += [numpy_helper.from_array(np.array(value), name) for name, value in scalars.items()]
nodes = [
    helper.make_node("QuantizeLinear", ["image", "one", "u8"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "one", "u8"], ["x"]),
    helper.make_node("DequantizeLinear", ["weight", "one", "s8"], ["w"]),
    helper.make_node("MatMul", ["x", "w"], ["product"]),
    helper.make_node("QuantizeLinear", ["product", "sums", "u8"], ["rounded"]),
    helper.make_node("DequantizeLinear", ["rounded", "sums", "u8"], ["logits"]),
]
ends = [
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])]
    for name, width in (("image", 64), ("logits", 16))
]
graph = helper.make_graph(nodes, "sums", *ends, constants)
path = Path(sys.argv[1])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
wanted = np.rint((x.astype(int) @ weight.astype(int)) / 10_000).clip(0, 255) * 10_000
for exact in (True, False):
    got = run_session(open_onnxruntime(path, exact), x.astype(np.float32))
    print("exact" if exact else "fast", int((got != wanted).sum()))
"""


def test_the_gate_sums_exactly_where_the_cpu_does_not(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64 is not installed, or this is no x86 machine")
    words = [qemu, "-cpu", "Haswell", sys.executable, "-c", SCRIPT, str(tmp_path / "sums.onnx")]
    root = Path(export.__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["exact", "0", "fast", "80"]
