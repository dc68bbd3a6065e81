"""8 bits that keep their accuracy, or say how far they got."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engine.onnx_file import to_proto
from export.formats.format import Array
from export.graph.quantize import ELEMENTWISE, Quantized, fewest, quantize
from export.verify import Reference, reference_outputs

IMAGES = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Touchy(nn.Module):
    """Two branches of which one, multiplied by 300 and cut down again, cannot bear 8 bits."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.robust, self.touchy, self.classifier = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 6)
        self.touchy.weight.data[0] *= gain
        self.touchy.bias.data[0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.robust(x)) + torch.tanh(self.touchy(x))
        return self.classifier(features.mean((2, 3)))


def run(net: nn.Module, tmp_path: Path, max_drop: float) -> tuple[Quantized, onnx.ModelProto, Reference]:
    def batches() -> Iterator[tuple[Array, Array | None]]:
        for start in range(0, len(IMAGES), 64):
            yield IMAGES[start : start + 64].numpy(), None

    reference = reference_outputs(net.eval(), batches)
    model = to_proto(net, IMAGES[:2])
    calibration = [IMAGES[:64].numpy()]
    found = quantize(model, tmp_path / "int8.onnx", calibration, reference, max_drop)
    return found, onnx.load(tmp_path / "int8.onnx"), reference


@pytest.mark.slow
def test_weights_are_signed_per_channel_and_activations_unsigned(tmp_path: Path) -> None:
    found, model, _ = run(Touchy(1.0), tmp_path, 10)
    assert (found.complaint, found.float_layers) == ("", ())
    assert found.parity.snr_db > 20
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {}
    for node in model.graph.node:
        if (
            node.op_type == "DequantizeLinear"
            and node.input[0] in values
            and len(values[node.input[0]].dims) == 4
        ):
            kinds["weights"] = values[node.input[0]].data_type, tuple(values[node.input[1]].dims)
        if node.op_type == "QuantizeLinear":
            kinds["activations"] = values[node.input[2]].data_type, tuple(values[node.input[1]].dims)
    assert kinds == {"weights": (onnx.TensorProto.INT8, (8,)), "activations": (onnx.TensorProto.UINT8, ())}


@pytest.mark.slow
def test_the_layers_that_hurt_most_stay_in_float(tmp_path: Path) -> None:
    loose, _, _ = run(Touchy(3000.0), tmp_path, 100)
    assert loose.float_layers == ()
    tight, model, reference = run(Touchy(3000.0), tmp_path, 100 * (reference_drop(loose) / 2) / 100)
    assert tight.complaint == ""
    assert 0 < len(tight.float_layers) <= tight.layers / 2
    assert tight.drop <= reference_drop(loose) / 2 < loose.drop
    assert 100 * (reference.accuracy - tight.parity.accuracy) == pytest.approx(tight.drop)
    weights = [
        t for t in model.graph.initializer if len(t.dims) == 4 and t.data_type == onnx.TensorProto.FLOAT
    ]
    assert len(weights) == sum(name != ELEMENTWISE and "onv" in name for name in tight.float_layers)


def reference_drop(found: Quantized) -> float:
    assert found.drop > 2, "else nothing is tested"
    return found.drop


@pytest.mark.slow
def test_what_cannot_be_held_says_how_far_it_got(tmp_path: Path) -> None:
    found, _, _ = run(Touchy(3000.0), tmp_path, -1.0)
    assert "points of top-1 in 8 bits, and still" in found.complaint
    assert "(limit -1)" in found.complaint


@pytest.mark.parametrize("least", [1, 2, 3, 5, 8, 13])
def test_fewest_finds_a_threshold_and_gives_up_beyond_the_most(least: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert fewest(holds, 10) == (least if least <= 10 else 11)
    assert len(tried) == len(set(tried)) <= 8
    assert np.max(tried) <= 10
