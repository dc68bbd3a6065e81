"""The process that looks into a file ends: after a time, and with the one that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.errors import UserError
from export.benchmark import probe
from export.benchmark.probe import probe_file
from export.formats.onnx import open_onnxruntime


def write_endless(path: Path) -> None:
    """A classifier with a loop that has no end."""
    value, condition = TensorProto.FLOAT, TensorProto.BOOL
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Relu", ["v"], ["v2"])],
        "body",
        [info("i", TensorProto.INT64, []), info("c", condition, []), info("v", value, None)],
        [info("c2", condition, []), info("v2", value, None)],
    )
    nodes = [
        helper.make_node("Loop", ["", "true", "x"], ["z"], body=body),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    inputs, outputs = [info("x", value, ["batch", 3, 8, 8])], [info("y", value, ["batch", 3])]
    true = helper.make_tensor("true", condition, [], [True])
    graph = helper.make_graph(nodes, "endless", inputs, outputs, [true])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    """A model file may name other files that hold its weights; they must lie beside it."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(np.ones((3, 3), np.float32).tobytes())
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], np.ones(9, np.float32).tobytes(), raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", "36")):
        weight.external_data.add(key=key, value=value)
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    inputs = [info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    outputs = [info("y", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "outside", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "a.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is not a model that onnxruntime can run"):
        open_onnxruntime(path)
    assert isinstance(probe_file(path, 1), str)
    with pytest.raises(Exception, match=r"(?i)external|outside|escape|path"):
        onnx.load(path)


@pytest.mark.slow
def test_an_endless_loop_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_endless(tmp_path / "endless.onnx")
    monkeypatch.setattr(probe, "PROBE_SECONDS", 4)
    assert "endless loop" in str(probe_file(tmp_path / "endless.onnx", 1))


@pytest.mark.slow
def test_the_probe_ends_with_its_parent(tmp_path: Path) -> None:
    write_endless(tmp_path / "endless.onnx")
    command = (
        "import sys; from pathlib import Path; from export.benchmark.probe import probe_file;"
        "probe_file(Path(sys.argv[1]), 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "endless.onnx")])
    # By its parent's number, since only the parent knows the probe.
    found = _within(60, lambda: _children(parent.pid))
    assert found, "no probe was started"
    time.sleep(2)  # it is in the loop by then
    parent.kill()
    parent.wait()
    assert _within(20, lambda: not os.path.exists(f"/proc/{found[0]}")), "the probe outlived its parent"


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _within(seconds: float, question):  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := question():
            return found
        time.sleep(0.2)
    return question()
