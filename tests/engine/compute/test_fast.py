"""What is computed in a faster way is what torch computes in its own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import pretended_gpu
from torch import Tensor

from engine.compute import fast
from engine.compute.fast import ACTIVATION, average_pool, depthwise, norm_act

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def plain_norm_act(x: Tensor, weight: Tensor, bias: Tensor, act: str | None, eps: float) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return ACTIVATION[act](y) if act else y


def assert_same(ours: Tensor, plain: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Equal values, and equal gradients for a gradient that is not constant."""
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, inputs, grad)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", [*ACTIVATION, None])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (2, 24, 5, 5), (4, 3, 1, 1)])
def test_norm_act_is_batch_norm_and_activation(
    shape: tuple[int, ...], act: str | None, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.double).to(memory_format=layout).requires_grad_()
    wide = torch.randn(2, shape[1] + 3, dtype=torch.double, requires_grad=True)
    weight, bias = wide[0, : shape[1]], wide[1, : shape[1]]
    assert_same(norm_act(x, weight, bias, act, 1e-3), plain_norm_act(x, weight, bias, act, 1e-3), (x, wide))


@pytest.mark.parametrize("act", ["relu", "swish"])
def test_gradients_of_norm_act_are_finite_differences(act: str) -> None:
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((3, 2, 2, 3), (2,), (2,))
    ]
    assert torch.autograd.gradcheck(lambda *a: norm_act(*a, act, 1e-5), inputs)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("size", [(9, 9), (8, 8), (5, 6), (1, 1), (2, 3)])
def test_depthwise_is_the_grouped_convolution(
    kernel: int, stride: int, dilation: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.compute.fast.PART", 300)  # more than one part
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    wide = torch.randn(8, 1, 9, 9, dtype=torch.double, requires_grad=True)
    edge = (9 - kernel) // 2
    weight = wide[:5, :, edge : edge + kernel, edge : edge + kernel]
    plain = F.conv2d(x, weight, None, stride, dilation * (kernel // 2), dilation, groups=5)
    assert_same(depthwise(x, weight, stride, dilation), plain, (x, wide))


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 9), (8, 12), (7, 8)])
def test_depthwise_takes_a_map_that_is_padded_already(
    kernel: int, stride: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 1, kernel, kernel, dtype=torch.double, requires_grad=True)
    plain = F.conv2d(x, weight, None, stride, groups=5)
    assert_same(depthwise(x, weight, stride, padding=0), plain, (x, weight))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 9), (4, 7), (1, 1), (2, 3)])
def test_average_pool_is_that_of_torch(
    size: tuple[int, int], stride: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.double).to(memory_format=layout).requires_grad_()
    assert_same(average_pool(x, stride), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), (x,))


def test_gradients_of_depthwise_are_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 3, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 1, 5, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: depthwise(*a, 1), (x, weight))


@pytest.mark.parametrize("act", list(ACTIVATION))
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_depthwise_makes_the_normalised_map_again(act: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 9, 9, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    gamma, beta, weight = (
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((16,), (16,), (16, 1, 5, 5))
    )
    made = norm_act(x, gamma, beta, act, 1e-3)
    ours = depthwise(made, weight, 2)
    assert ours.grad_fn is not None
    assert [tuple(t.shape) for t in ours.grad_fn.saved_tensors] == [(16, 1, 5, 5)], "the map is not kept"  # type: ignore[attr-defined]
    assert_same(
        ours,
        F.conv2d(plain_norm_act(x, gamma, beta, act, 1e-3), weight, None, 2, 2, groups=16),
        (x, gamma, beta, weight),
    )


def test_nothing_is_kept_without_gradients_and_eval_needs_none() -> None:
    with torch.no_grad():
        x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
        y = depthwise(norm_act(x, torch.ones(4), torch.zeros(4), "swish", 1e-5), torch.ones(4, 1, 5, 5), 1)
    assert y.grad_fn is None


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act(torch.ones(1, 4, 1, 1), torch.ones(4), torch.zeros(4), "relu", 1e-5)


def test_two_backward_passes_give_the_same_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 12, 12).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 1, 5, 5, requires_grad=True)
    grads = [torch.autograd.grad(depthwise(x, weight, 1).square().sum(), weight)[0] for _ in range(2)]
    assert torch.equal(*grads)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_compiled_layers_have_no_graph_break(device: str) -> None:
    """Looking at `grad_fn` would end a graph; on other devices than the CPU nobody looks."""
    x = torch.rand(2, 4, 8, 8, device=device, requires_grad=True)
    scale, shift = torch.ones(4, device=device), torch.zeros(4, device=device)
    weight = torch.rand(4, 1, 3, 3, device=device, requires_grad=True)

    def layers(x: Tensor) -> Tensor:
        x = depthwise(norm_act(x, scale, shift, "relu", 1e-5), weight)
        return average_pool(x, 1)

    whole = torch.compile(layers, backend="eager", fullgraph=True)  # a break raises
    assert whole(x).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("shape", [(2, 6, 5, 4, 3), (3, 4, 1, 1, 2)])
def test_ways_of_a_grouped_convolution_are_one_convolution(shape: tuple[int, ...]) -> None:
    count, channels, height, width, groups = shape
    torch.manual_seed(0)
    x = torch.randn(count, groups * channels, height, width, dtype=torch.double)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    point = torch.randn(groups * 5, channels, 1, 1, dtype=torch.double, requires_grad=True)
    for way in (fast._as_given, fast._in_planes, fast._in_products):
        assert_same(way(x, point, (1, 0, 1, groups)), F.conv2d(x, point, groups=groups), (x, point))
    assert_same(fast.grouped_pointwise(x, point, groups), F.conv2d(x, point, groups=groups), (x, point))
    depth = torch.randn(groups * channels, 1, 3, 3, dtype=torch.double, requires_grad=True)
    settings = (2, 1, 1, groups * channels)
    assert_same(
        fast._in_planes(x, depth, settings), fast._as_given(x, depth, settings).contiguous(), (x, depth)
    )


def test_an_operation_is_measured_once_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one that is pretended: another way is taken only where it is clearly faster."""
    times = {fast._as_given: 1.0, fast._in_planes: 0.9, fast._in_products: 0.5}
    asked = []

    def seconds(way: fast.Way, *_: object) -> float:
        asked.append(way)
        return times[way]

    monkeypatch.setattr(fast, "_seconds", seconds)
    monkeypatch.setattr(fast, "_chosen", {})
    with pretended_gpu(Path(__file__).parents[3]):
        x = torch.randn(2, 8, 4, 4, device="cuda").to(memory_format=torch.channels_last)
        for _ in range(2):
            fast.torch_depthwise(x, torch.randn(8, 1, 3, 3, device="cuda"))
            fast.grouped_pointwise(x, torch.randn(8, 4, 1, 1, device="cuda"), 2)
    assert asked == [fast._as_given, fast._in_planes, fast._as_given, fast._in_planes, fast._in_products]
    assert [*fast._chosen.values()] == [fast._as_given, fast._in_products]
