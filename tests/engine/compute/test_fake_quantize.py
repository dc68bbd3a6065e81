"""Rounding in torch is that of the definition, passes gradients, and is done once for one kernel."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.fake_quantize import FakeQuantize, Ranges, round_activation, round_weight


def by_definition(x: np.ndarray, scale: np.ndarray, zero: float, least: int, most: int) -> np.ndarray:
    return (np.clip(np.rint(x / scale) + zero, least, most) - zero) * scale


def test_tensors_are_rounded_as_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator) * 3
    got = round_activation(x, torch.tensor(-1.0), torch.tensor(2.0))
    wanted = by_definition(x.numpy(), np.float32(3 / 255), 85, 0, 255)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)
    assert 0.0 in by_definition(np.zeros(1), np.float32(3 / 255), 85, 0, 255), "padding stays zero"
    weight = torch.randn(6, 4, 3, 3, generator=generator) * torch.arange(1, 7)[:, None, None, None]
    scale = weight.abs().amax((1, 2, 3), keepdim=True).numpy() / np.float32(127)
    wanted = by_definition(weight.numpy(), scale, 0, -127, 127)
    np.testing.assert_allclose(round_weight(weight).numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert round_weight(torch.zeros(2, 3)).abs().max() == 0, "a channel of zeros has no scale"


def test_gradients_pass_where_a_number_is_in_its_range() -> None:
    x = torch.tensor([-2.0, 0.3, 5.0], requires_grad=True)
    round_activation(x, torch.tensor(-1.0), torch.tensor(2.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 0.0]
    weight = torch.randn(2, 3, requires_grad=True)
    round_weight(weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[1.0] * 3] * 2


class Block(nn.Module):
    """One of each: a convolution with norm and ReLU, a gate, a sum, a flattened map and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.gate, self.classifier = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        y = x * F.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.classifier((x + y).mean((2, 3), keepdim=True).flatten(1))


def test_what_one_kernel_computes_is_rounded_once() -> None:
    net, ranges = Block().eval(), Ranges()
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with FakeQuantize(ranges, "widen"):
            seen = net(x)
        torch.testing.assert_close(seen, net(x), rtol=0, atol=0)  # nothing is rounded while ranges are found
        # The image, behind ReLU, both means, the gate before and behind its function, product and sum.
        assert len(ranges) == 8
        with FakeQuantize(ranges):
            got = net(x)
        image = round_activation(x, *ranges[-1])
        weights = {name: round_weight(w) for name, w in net.state_dict().items() if w.dim() in (2, 4)}
        places = sorted(ranges)[1:]
        r = [ranges[place] for place in places]
        a = round_activation(F.relu(net.bn(F.conv2d(image, weights["conv.weight"], padding=1))), *r[0])
        pooled = round_activation(a.mean((2, 3), keepdim=True), *r[1])
        gate = round_activation(F.conv2d(pooled, weights["gate.weight"], net.gate.bias), *r[2])
        gate = round_activation(F.hardsigmoid(gate), *r[3])
        y = round_activation(a * gate, *r[4])
        total = round_activation(a + y, *r[5])
        features = round_activation(total.mean((2, 3)), *r[6])
        wanted = F.linear(features, weights["classifier.weight"], net.classifier.bias)
    torch.testing.assert_close(got, wanted)


def test_while_a_network_learns_ranges_are_those_of_its_batch() -> None:
    net, ranges = Block().train(), Ranges()
    for scale in (1.0, 3.0):
        x = torch.full((2, 3, 6, 6), scale)
        with FakeQuantize(ranges, "batch"):
            net(x).sum().backward()
    least, most = ranges[-1]
    assert (least, most) == (0.0, 3.0)
    assert all(parameter.grad is not None for parameter in net.parameters())
