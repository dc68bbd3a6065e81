"""Layers whose size is an argument: a layer is a slice of its largest weight.

A narrower layer uses the first channels, a smaller kernel the centre (BigNAS, 2020, arXiv:2003.11142;
AttentiveNAS, 2021, arXiv:2011.09011) or the centre times a matrix (OFA, 2020, arXiv:1908.09791). `forward`
and `slices` of a layer take the same sizes. `slices` names its tensors as the plain layer of
`engine.blocks.plain` does, so that extracting a subnet is loading them.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from engine.blocks.plain import padded_as_same
from engine.compute.distributed import batch_norm
from engine.compute.fast import ACTIVATION, depthwise, norm_act

Slices = dict[str, Tensor]


def prefixed(prefix: str, slices: Slices) -> Slices:
    """The same tensors with `prefix.` before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in slices.items()}


@torch.no_grad()
def draw_as_torch(weight: Tensor, bias: Tensor | None, generator: torch.Generator | None = None) -> None:
    """Draw a weight (outputs, inputs, ...) and a bias as torch's own convolutions and linear layers do.

    Both are uniform within 1 / sqrt(fan-in), where the fan-in is the inputs that one output sees. An elastic
    layer counts those of its largest choice. `ofa.initialisation` draws by other schemes.
    """
    nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    if bias is not None:
        bound = weight[0].numel() ** -0.5
        nn.init.uniform_(bias, -bound, bound, generator=generator)


class SharedLayer(nn.Module):
    """A layer that runs with slices of its largest weights.

    Torch makes the gradient of a slice a gradient of the whole weight, which is zero elsewhere, and adds that
    to the weight's: up to nine kernels for a narrow convolution with a small kernel. `add_gradients_in_place`
    makes it one, which writes the slice alone.
    """

    adds_in_place = False  # whether a backward pass adds the gradients of slices to the weights' in place

    def trained(self, whole: Tensor, part: Tensor) -> Tensor:
        """The tensor that the layer computes with: `part`, a view of its parameter `whole`.

        Gradients that are added in place are those of `backward`. `torch.autograd.grad` does not find them.
        """
        if not (self.adds_in_place and whole.requires_grad and torch.is_grad_enabled()):
            return part
        # The whole weight gets its gradient as any parameter does. In a sandwich the largest network comes
        # first, so that no gradient has to start with zeros.
        if part.shape == whole.shape:
            return whole
        if whole.grad is None:
            whole.grad = torch.zeros_like(whole)
        if whole.grad.stride() != whole.stride():
            return part
        start = whole.grad.storage_offset() + part.storage_offset() - whole.storage_offset()
        gradient = whole.grad.as_strided(part.shape, part.stride(), start)
        return _AddedInPlace.apply(whole, part.detach(), gradient)


class _AddedInPlace(torch.autograd.Function):
    """A slice of a parameter, whose gradient is added to a view of the parameter's gradient."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, part: Tensor, gradient: Tensor) -> Tensor:
        # Not among the saved tensors, which nobody may change before backward.
        ctx.gradient = gradient
        return part.view_as(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.gradient.add_(grad)
        # The parameter's own node has nothing left to do.
        return None, None, None


def add_gradients_in_place(net: nn.Module) -> None:
    """Let backward passes add the gradients of slices to those of the whole weights, from now on.

    The sums are the same, bit for bit. Hooks of the parameters do not see these gradients, so it is for a
    single process.
    """
    for module in net.modules():
        if isinstance(module, SharedLayer):
            module.adds_in_place = True


class ElasticConv(SharedLayer):
    """k x k convolution without bias whose widths and kernel are chosen at each call.

    same: whether it pads as TensorFlow does where it has a stride (`padded_as_same`), and not kernel // 2 on
        every side. At stride 1 both are the same.
    """

    def __init__(self, inp: int, out: int, kernel: int = 1, stride: int = 1, same: bool = False):
        super().__init__()
        self.kernel, self.stride, self.same = kernel, stride, same and stride > 1
        self.weight = nn.Parameter(torch.empty(out, inp, kernel, kernel))
        # No bias, since a BatchNorm that follows would subtract it again.
        draw_as_torch(self.weight, None)

    def slice(self, inp: int, out: int, kernel: int) -> Tensor:
        edge = (self.kernel - kernel) // 2  # kernels are odd, so a smaller one has a centre in common
        return self.weight[:out, :inp, edge : edge + kernel, edge : edge + kernel]

    def forward(self, x: Tensor, out: int, kernel: int) -> Tensor:
        weight = self.trained(self.weight, self.slice(x.shape[1], out, kernel))
        if self.same:
            return F.conv2d(padded_as_same(x, kernel, self.stride), weight, None, self.stride)
        return F.conv2d(x, weight, None, self.stride, kernel // 2)

    def slices(self, inp: int, out: int, kernel: int) -> Slices:
        return {"weight": self.slice(inp, out, kernel)}


class ElasticGroupedConv(ElasticConv):
    """k x k convolution in groups of `group` channels, as wide as its input.

    A narrower one has fewer groups, the first ones.
    """

    def __init__(self, width: int, group: int, kernel: int, stride: int):
        super().__init__(group, width, kernel, stride)
        self.group = group

    def slice(self, inp: int, out: int, kernel: int) -> Tensor:
        return super().slice(self.group, out, kernel)

    def forward(self, x: Tensor, out: int, kernel: int) -> Tensor:
        """out: must be the width of `x`, as in `ElasticDepthwise`."""
        weight = self.trained(self.weight, self.slice(out, out, kernel))
        return F.conv2d(x, weight, None, self.stride, kernel // 2, groups=out // self.group)


class ElasticDepthwise(SharedLayer):
    """Depthwise convolution, as wide as its input, whose smaller kernels are the centre of the largest.

    same: as in `ElasticConv`.
    """

    def __init__(self, width: int, kernel: int, stride: int, same: bool = False):
        super().__init__()
        self.kernel, self.stride, self.same = kernel, stride, same and stride > 1
        self.weight = nn.Parameter(torch.empty(width, 1, kernel, kernel))
        draw_as_torch(self.weight, None)

    def slice(self, width: int, kernel: int) -> Tensor:
        edge = (self.kernel - kernel) // 2
        return self.weight[:width, :, edge : edge + kernel, edge : edge + kernel]

    def kernels_in_use(self, width: int, kernel: int) -> Tensor:
        """What `forward` computes with: the slice, whose gradient goes where `trained` says."""
        return self.trained(self.weight, self.slice(width, kernel))

    def forward(self, x: Tensor, out: int, kernel: int) -> Tensor:
        """out: must be the width of `x`; every convolution takes the same arguments."""
        weight = self.kernels_in_use(out, kernel)
        if self.same:
            return depthwise(padded_as_same(x, kernel, self.stride), weight, self.stride, padding=0)
        return depthwise(x, weight, self.stride)

    def slices(self, inp: int, out: int, kernel: int) -> Slices:
        return {"weight": self.slice(out, kernel)}


class TransformedDepthwise(ElasticDepthwise):
    """Depthwise convolution whose smaller kernels follow from the next larger one by a learned matrix.

    A smaller kernel is the centre of the next larger one times a matrix. There is one for each step down,
    shared by all channels and starting as the identity: 7 -> 5 (25 x 25), then 5 -> 3 (9 x 9). Source: OFA
    (2020, arXiv:1908.09791).
    """

    def __init__(self, width: int, kernels: tuple[int, ...], stride: int, same: bool = False):
        """kernels: the choices, ascending."""
        super().__init__(width, kernels[-1], stride, same)
        self.kernels = kernels
        steps = pairwise(kernels)
        self.matrices = nn.ParameterDict({f"{large}to{small}": torch.eye(small**2) for small, large in steps})

    def slice(self, width: int, kernel: int) -> Tensor:
        return self._transformed(self.weight[:width], kernel)

    def kernels_in_use(self, width: int, kernel: int) -> Tensor:
        # Smaller kernels are computed, so the largest ones are what is a slice.
        return self._transformed(self.trained(self.weight, self.weight[:width]), kernel)

    def _transformed(self, weight: Tensor, kernel: int) -> Tensor:
        """The smaller kernels of `weight`, (width, 1, k, k) with the largest k."""
        width = len(weight)
        # Step by step from the largest kernel: 7 -> 3 is 7 -> 5 and then 5 -> 3, as in OFA's code, so that a
        # middle kernel and a small one share what they have in common.
        for large, small in pairwise(reversed(self.kernels)):
            if large == kernel:
                break
            edge = (large - small) // 2
            centre = weight[:, :, edge : edge + small, edge : edge + small].reshape(width, small**2)
            weight = F.linear(centre, self.matrices[f"{large}to{small}"]).reshape(width, 1, small, small)
        return weight


class ElasticBatchNorm(SharedLayer):
    """BatchNorm of the first channels: batch statistics in train mode, stored ones in eval mode.

    Training never accumulates the stored statistics, since one average over all widths would fit none of
    them. They mean something only if a checkpoint brought them along for the width in use. Subnets are
    therefore extracted and calibrated before anyone measures them.
    """

    joined = False  # whether batch statistics are those of all ranks; `join_batch_norms` sets it
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, act: str | None) -> Tensor:
        """BatchNorm and then the activation (none if `act` is None)."""
        width = x.shape[1]
        weight = self.trained(self.weight, self.weight[:width])
        bias = self.trained(self.bias, self.bias[:width])
        # BatchNorm and activation in one function keep less for the backward pass than one after the other,
        # but that function knows only the batch of this process.
        if self.training and not self.joined:
            return norm_act(x, weight, bias, act, self.eps)
        if self.training:
            y = batch_norm(x, weight, bias, self.eps)
        else:
            mean, var = self.running_mean[:width], self.running_var[:width]
            y = F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        return ACTIVATION[act](y) if act else y

    def slices(self, width: int) -> Slices:
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: getattr(self, name)[:width] for name in names}


def zero_scale(norm: ElasticBatchNorm | None) -> None:
    """Let a BatchNorm return zeros at first; None: there is none that may."""
    if norm is not None:
        nn.init.zeros_(norm.weight)


def join_batch_norms(net: nn.Module) -> None:
    """Let every BatchNorm of `net` take its batch statistics over the images of all ranks, from now on.

    All ranks must run the same architectures from then on, since each BatchNorm waits for the others.
    """
    for module in net.modules():
        if isinstance(module, ElasticBatchNorm):
            module.joined = True


class ElasticConvBN(nn.Module):
    """Elastic convolution, BatchNorm, activation (none if `act` is None)."""

    def __init__(self, conv: ElasticConv | ElasticDepthwise, act: str | None, eps: float):
        super().__init__()
        self.conv, self.bn = conv, ElasticBatchNorm(len(conv.weight), eps)
        self.act = act

    def forward(self, x: Tensor, out: int, kernel: int | None = None) -> Tensor:
        """kernel: side of the kernel in use; None: the largest."""
        return self.bn(self.conv(x, out, kernel or self.conv.kernel), self.act)

    def slices(self, inp: int, out: int, kernel: int | None = None) -> Slices:
        conv = self.conv.slices(inp, out, kernel or self.conv.kernel)
        return prefixed("conv", conv) | prefixed("bn", self.bn.slices(out))


class ElasticLinear(SharedLayer):
    """Linear layer whose widths are chosen at each call: the classifier, or a layer on pooled features."""

    def __init__(self, inp: int, out: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, inp))
        self.bias = nn.Parameter(torch.empty(out)) if bias else None
        draw_as_torch(self.weight, self.bias)

    def forward(self, x_NC: Tensor, out: int) -> Tensor:
        bias = None if self.bias is None else self.trained(self.bias, self.bias[:out])
        return F.linear(x_NC, self.trained(self.weight, self.weight[:out, : x_NC.shape[1]]), bias)

    def slices(self, inp: int, out: int) -> Slices:
        weight = {"weight": self.weight[:out, :inp]}
        return weight if self.bias is None else weight | {"bias": self.bias[:out]}


class DropConnect(NamedTuple):
    """Stochastic depth of one block: the probability that an image's residual branch is dropped."""

    rate: float
    generator: torch.Generator


def drop_connect(x_NCHW: Tensor, drop: DropConnect) -> Tensor:
    """A residual branch in which whole images are dropped at random and the others are scaled up.

    Source: stochastic depth (2016, arXiv:1603.09382).

    Args:
        x_NCHW: the output of the branch.
        drop: the rate and the generator, which is on the device of `x_NCHW`.
    """
    # Scaled up here, so that evaluation needs no scale: the expectation is the same.
    draw = torch.rand((len(x_NCHW), 1, 1, 1), generator=drop.generator, device=x_NCHW.device)
    return x_NCHW * ((draw >= drop.rate) / (1 - drop.rate)).to(x_NCHW.dtype)


def dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Entries zeroed with probability `rate`, the others scaled up so that the expectation stays."""
    # Not torch's own dropout, which draws from the global generator.
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)
