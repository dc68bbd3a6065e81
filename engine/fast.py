"""The same mathematics in less time and memory on CPUs, where torch's own way is slow; every other device gets torch's own way.

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
ACTIVATION: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish, "swish": F.silu}


def depthwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Depthwise convolution of x (N, C, H, W), padded by k // 2, with weight (n C, 1, k, k): all channels with the first C kernels, then
    all with the next C, and so on: n depthwise convolutions of the same input. Returns (N, n C, H / stride, W / stride)."""
    kernel, copies = weight.shape[-1], len(weight) // x.shape[1]
    if (kernel > 3 or copies > 1) and stride <= 2 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return _Depthwise.apply(x, weight, stride, x.grad_fn if type(x.grad_fn) is _NormAct._backward_cls else None)
    return F.conv2d(_copied(x, copies), weight, None, stride, kernel // 2, groups=len(weight))


def _copied(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else torch.cat([x] * copies, 1)


class _Depthwise(torch.autograd.Function):
    """oneDNN has a fast weight gradient for depthwise kernels 3 wide; wider ones are put together from such columns.

    An input that `norm_act` made is not kept either, but made again from what its graph node, `maker`, keeps anyway; of an input
    that several kernels share, one copy is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, maker: Any) -> Tensor:
        ctx.save_for_backward(weight, *([] if maker else [x]))
        ctx.stride, ctx.maker = stride, maker
        wide = _copied(x, len(weight) // x.shape[1])
        return F.conv2d(wide, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, *kept = ctx.saved_tensors
        x, *norm = kept or ctx.maker.saved_tensors  # what was normalised has the input's shape: enough for its gradient
        copies = len(weight) // x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = sum_of_copies(_input_gradient(grad, x, weight, ctx.stride), copies)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            images = max(1, PART * len(x) // (x.numel() * copies))
            for part, grad_part in zip(torch.split(x, images), torch.split(grad, images), strict=True):
                if norm:
                    part = ACTIVATION[ctx.maker.act](_normalised(part, norm, ctx.maker.eps), inplace=True)
                grad_weight += _weight_gradient(grad_part, _copied(part, copies), weight, ctx.stride)
        return grad_x, grad_weight, None, None


def sum_of_copies(x: Tensor, copies: int) -> Tensor:
    """(N, n C, H, W) -> (N, C, H, W): the sum over its n blocks of channels."""
    total = x
    for number, block in enumerate(x.chunk(copies, 1) if copies > 1 else ()):
        total = block if number == 0 else total + block
    return total


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """At stride 1 it is itself a convolution, with the kernels turned; oneDNN is faster at that than at its own gradient."""
    if stride == 1:
        return F.conv2d(grad, weight.flip(2, 3), None, 1, weight.shape[-1] // 2, groups=len(weight))
    return _backward(grad, _copied(x, len(weight) // x.shape[1]), weight, stride, [weight.shape[-1] // 2] * 2, [True, False, False])[0]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    if weight.shape[-1] > 3:
        return _columns(grad, x, weight, stride)
    return _backward(grad, x, weight, stride, [weight.shape[-1] // 2] * 2, [False, True, False])[1]


def _backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], wanted: list[bool]) -> list[Tensor]:
    return aten.convolution_backward(grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight), wanted)


def _columns(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Weight gradient (C, 1, k, k) from columns 0..2, 2..4, ... of a 3-wide kernel, whose own padding is 1.

    Columns that start `left` further right meet the outputs' gradient `left / stride` places later: it moves within rows that
    have room for that. The zeros after one row are those before the next, so every move is a dense view of one copy.
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
        moved = flat[start : start + count * height * pitch].view(count, height, pitch, channels).permute(0, 3, 1, 2)
        columns = slice(left, left + 3)
        result[..., columns] = _backward(moved, x, weight[..., columns], stride, [kernel // 2, 1], [False, True, False])[1]
    return result


def norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, act: str | None, eps: float, mean: Tensor | None = None, var: Tensor | None = None
) -> Tensor:
    """BatchNorm of x (N, C, H, W) by the batch's own statistics, then the activation (none if `act` is None).

    mean, var: running statistics, moved a tenth of the way to the batch's.
    """
    if act and x.device.type == "cpu" and x.dtype == weight.dtype and x.numel() > x.shape[1]:
        return _NormAct.apply(x, weight, bias, act, eps, mean, var)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, eps=eps)
    return ACTIVATION[act](y) if act else y


class _NormAct(torch.autograd.Function):
    """Keeps the input only and normalises it again in backward, where plain layers keep the normalised one too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, act: str, eps: float, running_mean: Tensor | None, running_var: Tensor | None
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
        return *aten.native_batch_norm_backward(y, x, weight, None, None, mean, inverse, True, ctx.eps, wanted), *[None] * 4


def _normalised(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """BatchNorm's output once more. norm: weight, bias, mean, and 1 / sqrt(variance + eps)."""
    weight, bias, mean, inverse = norm
    return aten.native_batch_norm(x, weight, bias, mean, inverse**-2 - eps, False, 0.0, eps)[0]
