"""Rounding in torch, which tuning and selection rely on, is that of the file that export writes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engine.compute.fake_quantize import FakeQuantize, Ranges
from engine.data.augment import resize
from export.manifest import read_manifest
from ofa.quantization import int8_accuracy
from ofa.space.arch import largest
from ofa.trained import TrainedSupernet


@pytest.mark.slow
def test_the_same_tensors_are_rounded_to_the_same_levels(exported: Path, trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    subnet, ranges = trained.subnet(largest(trained.space)), Ranges()
    with torch.no_grad():
        for x, _ in trained.data.batches("train", 64, 256):
            with FakeQuantize(ranges, "widen"):
                subnet(resize(x, subnet.arch.resolution))
    ours = np.array([float(most - least) / 255 for least, most in ranges.values()])
    path = exported / "largest.cpu-int8.onnx"
    graph = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ends = {"logits", "logits_QuantizeLinear_Input"}  # nothing reads the logits, so torch does not round them
    theirs = {
        node.input[0]: float(values[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in ends
    }
    for name, scale in theirs.items():
        assert np.isclose(ours, scale, rtol=1e-4).any(), name
    if not read_manifest(path).quantization["float_layers"]:  # type: ignore[index]
        for scale in ours:
            assert np.isclose(list(theirs.values()), scale, rtol=1e-4).any()


@pytest.mark.slow
def test_the_accuracy_is_that_of_the_file(exported: Path, trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    manifest = read_manifest(exported / "largest.cpu-int8.onnx")
    rounded = int8_accuracy(
        trained.subnet(largest(trained.space)), trained.data, trained.data.batches("val", 64)
    )
    assert manifest.accuracy is not None
    assert rounded == pytest.approx(manifest.accuracy.file, abs=0.03)
