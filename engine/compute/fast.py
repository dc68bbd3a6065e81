"""The same mathematics in less time and memory on CPUs, where torch's own way is slow; every other device
gets torch's own way.

Results are those of the plain composition up to rounding. What each trick gains is in `benchmarks/records/`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
PART = 2**22  # numbers of a map that are copied at a time: 16 MiB
ACTIVATION: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "swish": F.silu,
}


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Depthwise convolution of x (N, C, H, W), padded by dilation * (k // 2), with weight (C, 1, k, k).

    Returns (N, C, H / stride, W / stride), sizes rounded up.
    """
    maker = x.grad_fn if type(x.grad_fn) is _NormAct._backward_cls else None
    pays = weight.shape[-1] > 3 or maker is None  # to make an input again costs more than 3 x 3 kernels gain
    known = (
        (stride, dilation) in ((1, 1), (2, 1), (1, 2))
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
    if pays and known and x.is_contiguous(memory_format=torch.channels_last):
        return _Depthwise.apply(x, weight, stride, dilation, maker)
    return torch_depthwise(x, weight, stride, dilation)


def torch_depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """The same by torch alone; differentiable any number of times."""
    return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, len(weight))


class _Depthwise(torch.autograd.Function):
    """oneDNN has a fast weight gradient for depthwise kernels 3 wide; wider ones are put together from such
    columns, dilated ones are dense ones of even and odd rows and columns apart.

    An input that `norm_act` made is not kept either, but made again from what its graph node, `maker`, keeps
    anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int, maker: Any) -> Tensor:
        needs_x = ctx.needs_input_grad[1] or stride > 1
        ctx.save_for_backward(weight, *([x] if needs_x and not maker else []))
        ctx.stride, ctx.dilation, ctx.maker = stride, dilation, maker
        return torch_depthwise(x, weight, stride, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weight, *kept = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        # What was normalised has the input's shape: enough for its gradient.
        x, *norm = ctx.maker.saved_tensors if ctx.maker else (kept or [grad])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad, x, weight, ctx.stride, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            images = max(1, PART * len(x) // x.numel())
            for part, grad_part in zip(torch.split(x, images), torch.split(grad, images), strict=True):
                if norm:
                    part = ACTIVATION[ctx.maker.act](_normalised(part, norm, ctx.maker.eps), inplace=True)
                grad_weight += _weight_gradient(grad_part, part, weight, ctx.stride, ctx.dilation)
        return grad_x, grad_weight, None, None, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """At stride 1 it is itself a convolution, with the kernels turned; oneDNN is faster at that than at its
    own gradient."""
    if stride == 1:
        return torch_depthwise(grad, weight.flip(2, 3), 1, dilation)
    return _backward(grad, x, weight, stride, [weight.shape[-1] // 2] * 2, [True, False, False])[0]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    edge = weight.shape[-1] // 2
    if dilation == 2:
        grad, x = _apart(grad, edge), _apart(x, edge)
    if (
        edge > 1 and x.shape[2] >= weight.shape[-1]
    ):  # on lower maps oneDNN does not take the fast one for columns either
        return _columns(grad, x, weight, stride)
    return _backward(grad, x, weight, stride, [edge] * 2, [False, True, False])[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], wanted: list[bool]
) -> list[Tensor]:
    return aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight), wanted
    )


def _apart(x: Tensor, gap: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H + gap, W + gap): even rows, zeros, odd rows; columns likewise. Dilation 2
    there is dilation 1."""
    count, channels, height, width = x.shape
    result = x.new_zeros(count, height + gap, width + gap, channels).permute(0, 3, 1, 2)
    rows, columns = (
        [(0, slice(-(-size // 2))), (1, slice(-(-size // 2) + gap, None))] for size in (height, width)
    )
    for odd_row, to_rows in rows:
        for odd_column, to_columns in columns:
            result[:, :, to_rows, to_columns] = x[:, :, odd_row::2, odd_column::2]
    return result


def _columns(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Weight gradient (C, 1, k, k) from columns 0..2, 2..4, ... of a 3-wide kernel, whose own padding is 1.

    Columns that start `left` further right meet the outputs' gradient `left / stride` places later: it moves
    within rows that have room for that. The zeros after one row are those before the next, so every move is a
    dense view of one copy.
    """
    kernel = weight.shape[-1]
    count, channels, height, width = grad.shape
    room = (kernel - 3) // stride
    pitch = width + room
    flat = grad.new_empty(room + count * height * pitch, channels)
    rows = flat[room:].view(count, height, pitch, channels)
    rows[:, :, :width] = grad.permute(0, 2, 3, 1)
    rows[:, :, width:] = flat[:room] = 0
    edge = kernel // 2 - 1
    x = F.pad(x, (edge, edge))
    result = torch.empty_like(weight)
    for left in range(0, kernel - 2, 2):
        start = room - left // stride
        moved = (
            flat[start : start + count * height * pitch]
            .view(count, height, pitch, channels)
            .permute(0, 3, 1, 2)
        )
        columns = slice(left, left + 3)
        result[..., columns] = _backward(
            moved, x, weight[..., columns], stride, [kernel // 2, 1], [False, True, False]
        )[1]
    return result


def average_pool(x: Tensor, stride: int) -> Tensor:
    """The mean over 3 x 3 windows, what lies outside the map left out."""
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    inside = F.avg_pool2d(x.new_ones(1, 1, *x.shape[2:]), 3, stride, 1)
    return F.conv2d(x, x.new_full((x.shape[1], 1, 3, 3), 1 / 9), None, stride, 1, groups=x.shape[1]) / inside


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: str | None,
    eps: float,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """BatchNorm of x (N, C, H, W) by the batch's own statistics, then the activation (none if `act` is None).

    mean, var: running statistics, moved a tenth of the way to the batch's.
    """
    if act and x.device.type == "cpu" and x.dtype == weight.dtype and x.numel() > x.shape[1]:
        return _NormAct.apply(x, weight, bias, act, eps, mean, var)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, eps=eps)
    return ACTIVATION[act](y) if act else y


class _NormAct(torch.autograd.Function):
    """Keeps the input only and normalises it again in backward, where plain layers keep the normalised one
    too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        act: str,
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        y, mean, inverse = aten.native_batch_norm(x, weight, bias, running_mean, running_var, True, 0.1, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.act, ctx.eps = act, eps
        return ACTIVATION[act](y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _, mean, inverse = ctx.saved_tensors
        y = _normalised(x, ctx.saved_tensors[1:], ctx.eps)
        match ctx.act:
            case "relu":
                aten.threshold_backward.grad_input(grad, y, 0, grad_input=y)
            case "relu6":
                aten.hardtanh_backward.grad_input(grad, y, 0, 6, grad_input=y)
            case "hard_swish":
                aten.hardswish_backward.out(grad, y, out=y)
            case _:
                aten.silu_backward.grad_input(grad, y, grad_input=y)
        wanted = list(ctx.needs_input_grad[:3])
        return *aten.native_batch_norm_backward(
            y, x, weight, None, None, mean, inverse, True, ctx.eps, wanted
        ), *[None] * 4


def _normalised(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """BatchNorm's output once more. norm: weight, bias, mean, and 1 / sqrt(variance + eps)."""
    weight, bias, mean, inverse = norm
    return aten.native_batch_norm(x, weight, bias, mean, inverse**-2 - eps, False, 0.0, eps)[0]
