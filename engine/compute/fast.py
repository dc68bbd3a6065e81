"""Layers that take less time and memory on CPUs than torch's own; other devices get torch's own.

On CUDA a grouped convolution is computed in the way that was measured to be the fastest there.

Results are those of torch's layers up to rounding. What each trick gains is measured in
`benchmarks/records/2026-11-22-sandwich-step.md` and `2026-11-22-search-step.md`.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
# Numbers of a map that are copied at a time: 16 MiB. Whole maps took 0.2 GiB more at the peak of a step.
PART = 2**22
ACTIVATION: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "swish": F.silu,
}


def depthwise(
    x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1, padding: int | None = None
) -> Tensor:
    """Depthwise convolution.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        stride: of the output positions.
        dilation: pixels from one weight of a kernel to the next.
        padding: zeros on every side; None: dilation * (k // 2). With 0 the map has its zeros already, such
            as those of TensorFlow's 'same'.

    Returns:
        (N, C, H / stride, W / stride), sizes rounded up, if the padding is None.
    """
    if padding is None:
        padding = dilation * (weight.shape[-1] // 2)
    if not _tuned(x) or torch.is_autocast_enabled("cpu"):
        return torch_depthwise(x, weight, stride, dilation, padding)
    # The gradients below are written for these combinations and for this layout, in which columns are views.
    known = (stride, dilation) in ((1, 1), (2, 1), (1, 2))
    if padding != dilation * (weight.shape[-1] // 2):
        known = (stride, dilation, padding) == (2, 1, 0)
    if not known or not x.is_contiguous(memory_format=torch.channels_last):
        return torch_depthwise(x, weight, stride, dilation, padding)
    # What `norm_act` made can be made again from what its node in the graph keeps.
    maker = x.grad_fn if type(x.grad_fn) is _NormAct._backward_cls else None
    if maker is not None and weight.shape[-1] <= 3:
        # Making an input again in backward costs more than kernels of 3 x 3 gain: they were up to 1.18 times
        # slower than torch.
        return torch_depthwise(x, weight, stride, dilation, padding)
    return _Depthwise.apply(x, weight, stride, dilation, padding, maker)


def _tuned(x: Tensor) -> bool:
    """Whether the ways of this file are for this tensor.

    torch.compile gets torch's own layers on CPU, too: it could not follow `grad_fn`, and fuses by itself.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def torch_depthwise(
    x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1, padding: int | None = None
) -> Tensor:
    """What `depthwise` computes, by torch alone; differentiable any number of times."""
    if padding is None:
        padding = dilation * (weight.shape[-1] // 2)
    settings = (stride, padding, dilation, len(weight))
    ways = (_as_given, _in_planes)
    return _fastest(("depthwise", weight.shape[-1], stride, dilation), ways, x, weight, settings)


def grouped_pointwise(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A 1x1 convolution in groups, such as those of several edges at once.

    Args:
        x: (N, groups * I, H, W).
        weight: (groups * O, I, 1, 1).
        groups: how many.

    Returns:
        (N, groups * O, H, W).
    """
    # Of one group it is a matrix product already.
    if groups == 1:
        return F.conv2d(x, weight)
    ways = (_as_given, _in_planes, _in_products)
    return _fastest(("pointwise", groups), ways, x, weight, (1, 0, 1, groups))


# How a grouped convolution is computed on CUDA. cuDNN is known to be slow at some of them in float32 and
# channels_last (pytorch issue 34977), and nobody knows at which on a GPU that is not there. So each operation
# is measured when it first runs. Not run on a GPU so far.
Settings = tuple[int, int, int, int]  # stride, padding, dilation, groups
Way = Callable[[Tensor, Tensor, Settings], Tensor]
FASTER = 0.8  # another way must take less than this share of the time, so that chance does not decide
_chosen: dict[Hashable, Way] = {}  # for each operation and GPU


def _as_given(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """In the layout of x."""
    return F.conv2d(x, weight, None, *settings)


def _in_planes(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """In torch's usual layout, NCHW, with a copy before and after."""
    y = F.conv2d(x.contiguous(), weight.contiguous(), None, *settings)
    return y.contiguous(memory_format=torch.channels_last)


def _in_products(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """A 1x1 convolution as one matrix product a group, all together; the groups of x are views of it."""
    groups = settings[3]
    count, _, height, width = x.shape
    rows_GPI = x.permute(0, 2, 3, 1).reshape(count * height * width, groups, -1).transpose(0, 1)
    weight_GIO = weight.reshape(groups, -1, weight.shape[1]).transpose(1, 2)
    y = torch.bmm(rows_GPI, weight_GIO).transpose(0, 1)
    return y.reshape(count, height, width, -1).permute(0, 3, 1, 2)


def _fastest(
    operation: Hashable, ways: Sequence[Way], x: Tensor, weight: Tensor, settings: Settings
) -> Tensor:
    """The convolution, on CUDA by the way that took the least time when this operation first ran.

    One measurement stands for all sizes of an operation, since a supernet has others in each step.
    """
    # What is compiled gets its layout from the compiler; in bfloat16 nothing of the kind is known.
    known = torch.compiler.is_compiling() or x.device.type != "cuda" or x.dtype != torch.float32
    if known or torch.is_autocast_enabled("cuda") or not x.is_contiguous(memory_format=torch.channels_last):
        return ways[0](x, weight, settings)
    key = operation, x.device
    # A graph that is being recorded cannot measure. Its warm-up did.
    if key not in _chosen and torch.cuda.is_current_stream_capturing():
        return ways[0](x, weight, settings)
    if key not in _chosen:
        times = [_seconds(way, x, weight, settings) for way in ways]
        best = min(range(len(ways)), key=times.__getitem__)
        _chosen[key] = ways[best] if times[best] < FASTER * times[0] else ways[0]
    return _chosen[key](x, weight, settings)


def _seconds(way: Way, x: Tensor, weight: Tensor, settings: Settings) -> float:
    """What forward and backward take, the least of three."""
    x, weight = torch.ones_like(x).requires_grad_(), torch.ones_like(weight).requires_grad_()
    times = []
    # The first one is not counted: libraries choose their kernels in it.
    for _ in range(4):
        torch.cuda.synchronize(x.device)
        began = time.perf_counter()
        with torch.enable_grad():
            way(x, weight, settings).sum().backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient uses oneDNN's fast path.

    oneDNN has a fast weight gradient for kernels 3 wide only. Wider kernels are put together from columns of
    that width, and dilated kernels become dense ones on even and odd rows and columns apart.

    An input that `norm_act` made is not kept: backward makes it again from what its graph node, `maker`,
    keeps anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int, padding: int, maker: Any
    ) -> Tensor:
        # The weight's gradient needs x itself, the input's its size, which at stride 2 `grad` does not tell.
        needs_x = ctx.needs_input_grad[1] or stride > 1
        kept = [x] if needs_x and not maker else []
        ctx.save_for_backward(weight, *kept)
        ctx.stride, ctx.dilation, ctx.padding, ctx.maker = stride, dilation, padding, maker
        return torch_depthwise(x, weight, stride, dilation, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        weight, *kept = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        # With a maker x is what was normalised: it has the shape of the input, which is all that the input's
        # gradient needs. With nothing kept the output's gradient has that shape.
        x, *norm = ctx.maker.saved_tensors if ctx.maker else (kept or [grad])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad, x, weight, ctx.stride, ctx.dilation, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            # A part at a time: copies of a whole map would be the largest tensors of the step.
            images = max(1, PART * len(x) // x.numel())
            for part, grad_part in zip(torch.split(x, images), torch.split(grad, images), strict=True):
                if norm:
                    part = ACTIVATION[ctx.maker.act](_normalised(part, norm, ctx.maker.eps), inplace=True)
                grad_weight += _weight_gradient(
                    grad_part, part, weight, ctx.stride, ctx.dilation, ctx.padding
                )
        return grad_x, grad_weight, None, None, None, None


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, padding: int
) -> Tensor:
    """Gradient of the input (N, C, H, W)."""
    if stride == 1:
        # It is itself a convolution with the kernels turned, at which oneDNN is faster than at its gradient.
        return torch_depthwise(grad, weight.flip(2, 3), 1, dilation)
    return _backward(grad, x, weight, stride, [padding] * 2, [True, False, False])[0]


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, padding: int
) -> Tensor:
    """Gradient of the weight (C, 1, k, k)."""
    edge = weight.shape[-1] // 2
    if dilation == 2:
        # Zeros between even and odd pixels are the padding of both, so one dense convolution does all.
        grad, x, padding = _apart(grad, edge), _apart(x, edge), edge
    # On maps lower than the kernel oneDNN does not take the fast path for columns either: 5 x 5 on a map of
    # 4 x 4 takes 8.6 ms by columns and 2.4 ms by torch.
    if edge > 1 and x.shape[2] >= weight.shape[-1]:
        return _columns(grad, x, weight, stride, padding)
    return _backward(grad, x, weight, stride, [padding] * 2, [False, True, False])[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], wanted: list[bool]
) -> list[Tensor]:
    return aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight), wanted
    )


def _apart(x: Tensor, gap: int) -> Tensor:
    """Even rows, zeros, odd rows, and columns likewise: what is 2 apart in x is 1 apart in the result.

    Args:
        x: (N, C, H, W).
        gap: rows and columns of zeros.

    Returns:
        (N, C, H + gap, W + gap).
    """
    count, channels, height, width = x.shape
    # Made as NHWC, so that the result is channels_last.
    result = x.new_zeros(count, height + gap, width + gap, channels).permute(0, 3, 1, 2)
    even_rows, even_columns = -(-height // 2), -(-width // 2)
    for odd_row, to_rows in ((0, slice(even_rows)), (1, slice(even_rows + gap, None))):
        for odd_column, to_columns in ((0, slice(even_columns)), (1, slice(even_columns + gap, None))):
            result[:, :, to_rows, to_columns] = x[:, :, odd_row::2, odd_column::2]
    return result


def _columns(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Weight gradient (C, 1, k, k), k > 3, put together from columns 0..2, 2..4, ... of the kernel.

    Each is the gradient of a kernel 3 wide, for which oneDNN is fast only if its padding is at most 1.

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
    # The convolution adds at most 1 of the padding, the rest is added here.
    own = min(padding, 1)
    x = F.pad(x, (padding - own, padding - own))
    result = torch.empty_like(weight)
    for left in range(0, kernel - 2, 2):
        start = room - left // stride
        moved_NHWC = flat[start : start + count * height * pitch].view(count, height, pitch, channels)
        moved = moved_NHWC.permute(0, 3, 1, 2)
        # A column that two slices share is computed twice, and the later one is kept: both are the same.
        columns = slice(left, left + 3)
        paddings, wanted = [padding, own], [False, True, False]
        result[..., columns] = _backward(moved, x, weight[..., columns], stride, paddings, wanted)[1]
    return result


def average_pool(x: Tensor, stride: int) -> Tensor:
    """Average pool of 3 x 3 that leaves out what lies outside the map.

    Args:
        x: (N, C, H, W).
        stride: of the output positions.

    Returns:
        (N, C, H / stride, W / stride), sizes rounded up.
    """
    if not _tuned(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    # A depthwise convolution takes 0.10 ms where torch's pool takes 0.44 (16 x 16 x 32 x 32).
    mean_kernel = x.new_full((x.shape[1], 1, 3, 3), 1 / 9)
    # The share of each window that lies inside the map: the pool of ones, padded with zeros.
    inside = F.avg_pool2d(x.new_ones(1, 1, *x.shape[2:]), 3, stride, 1)
    return F.conv2d(x, mean_kernel, None, stride, 1, groups=x.shape[1]) / inside


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: str | None,
    eps: float,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """BatchNorm by the batch's own statistics, then an activation.

    Args:
        x: (N, C, H, W).
        weight: scale (C,).
        bias: shift (C,).
        act: name of the activation in `ACTIVATION`; None: none.
        eps: what is added to the variance.
        mean: running mean (C,), moved in place a tenth of the way to the batch's; None: there is none.
        var: running variance (C,), moved likewise.
    """
    # A single value a channel has no variance, which F.batch_norm refuses and the kernel below does not.
    if act and _tuned(x) and x.dtype == weight.dtype and x.numel() > x.shape[1]:
        return _NormAct.apply(x, weight, bias, act, eps, mean, var)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, eps=eps)
    return ACTIVATION[act](y) if act else y


class _NormAct(torch.autograd.Function):
    """BatchNorm and activation in one node that keeps only its input.

    Backward normalises the input again. Two layers of torch keep the normalised map too, which doubles the
    memory. It buys memory and not time: 7.1 + 12.0 ms forward and backward instead of 7.6 + 10.8.
    """

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
        # The gradient of the activation is written over y, so that one map less is alive.
        match ctx.act:
            case "relu":
                aten.threshold_backward.grad_input(grad, y, 0, grad_input=y)
            case "relu6":
                aten.hardtanh_backward.grad_input(grad, y, 0, 6, grad_input=y)
            case "hard_swish":
                aten.hardswish_backward.out(grad, y, out=y)
            case "swish":
                aten.silu_backward.grad_input(grad, y, grad_input=y)
        wanted = list(ctx.needs_input_grad[:3])
        args = (y, x, weight, None, None, mean, inverse, True, ctx.eps, wanted)
        return *aten.native_batch_norm_backward(*args), None, None, None, None


def _normalised(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """The output that BatchNorm had in the forward pass, computed again.

    Args:
        x: its input (N, C, H, W).
        norm: weight, bias, mean and 1 / sqrt(variance + eps), each (C,).
        eps: what was added to the variance.
    """
    weight, bias, mean, inverse = norm
    return aten.native_batch_norm(x, weight, bias, mean, inverse**-2 - eps, False, 0.0, eps)[0]
