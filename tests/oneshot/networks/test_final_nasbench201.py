"""The network of a NAS-Bench-201 cell."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from oneshot.nasbench201.codes import find_cell
from oneshot.networks.final_nasbench201 import FinalNasBench201Cell, FinalNasBench201Network

CELLS = [
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|",
    "|none~0|+|avg_pool_3x3~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]


def test_a_cell_is_the_sum_of_its_edges() -> None:
    torch.manual_seed(0)
    module = FinalNasBench201Cell(find_cell(CELLS[0]).cells["cell"], 4).eval()
    x = torch.randn(2, 4, 8, 8)
    conv = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    scale = (1 + 1e-5) ** -0.5  # BatchNorm as it starts
    first = conv[0](x.relu()) * scale
    second = conv[1](x.relu()) * scale + nn.functional.avg_pool2d(first, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(module(x), x + conv[2](first.relu()) * scale + second)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_it_exports_and_trains(cell: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FinalNasBench201Network(find_cell(cell), channels=4, cells=1, classes=7)
    x = torch.randn(3, 3, 16, 16)
    logits = net(x)
    assert logits.shape == (3, 7)
    logits.logsumexp(1).sum().backward()
    assert net.head[-1].weight.grad is not None
    net.eval()
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        net, (x,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = ort.InferenceSession(tmp_path / "net.onnx")
    got = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})[0]
    np.testing.assert_allclose(got, net(x[:2]).detach().numpy(), atol=1e-5)
