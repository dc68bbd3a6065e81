"""The stem, which turns an image into the first map: elastic, plain, its spec and its cost."""

from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from engine.blocks.elastic import ElasticConv, ElasticConvBN, Slices, prefixed
from engine.blocks.kind import activation_entries
from engine.blocks.plain import ConvBN
from engine.blocks.sizes import chain_memory, halve


class StemSpec(NamedTuple):
    """The stem on a `size` x `size` image.

    Args:
        size: side of the image.
        channels: of the image.
        width: channels of its output.
        stride, kernel: of its first convolution.
        act: name of its activation.
        deep: whether there are several convolutions.
        middle: width between the first and the last convolution of a deep stem; 0 in others.
        plain, residual: number of convolutions without and with a shortcut between these two.
        pool: whether a max pool of stride 2 follows, as in every deep stem.
        same: whether its stride pads as TensorFlow's 'same' does, which a stem with a pool never does.
    """

    size: int
    channels: int
    width: int
    stride: int
    act: str
    deep: bool
    middle: int
    plain: int
    residual: int
    kernel: int
    pool: bool
    same: bool = False

    @property
    def widths(self) -> list[int]:
        """Channels of the image and after each convolution."""
        middles = [self.middle] * (1 + self.plain + self.residual) if self.deep else []
        return [self.channels, *middles, self.width]

    @property
    def size_after(self) -> int:
        """Side of the map after the convolutions; a pool halves it once more."""
        return halve(self.size, self.stride)


class ElasticPooledStem(ElasticConvBN):
    """A convolution and a max pool in the supernet, as in ResNet (2015, arXiv:1512.03385)."""

    def forward(self, x: Tensor, out: int, kernel: int | None = None) -> Tensor:
        return F.max_pool2d(super().forward(x, out, kernel), 3, 2, 1)


class ElasticDeepStem(nn.Module):
    """ResNet-D's stem (2018, arXiv:1812.01187) in the supernet.

    A convolution with the stride, `plain` ones without a shortcut, up to `residual` residual ones, one to the
    stem's width, and a max pool.
    """

    def __init__(self, widest: StemSpec, eps: float):
        super().__init__()
        middle, act = widest.middle, widest.act
        self.first = ElasticConvBN(ElasticConv(widest.channels, middle, 3, widest.stride), act, eps)
        self.plain = nn.ModuleList()
        for _ in range(widest.plain):
            self.plain.append(ElasticConvBN(ElasticConv(middle, middle, 3), act, eps))
        self.residual = nn.ModuleList()
        for _ in range(widest.residual):
            self.residual.append(ElasticConvBN(ElasticConv(middle, middle, 3), act, eps))
        self.last = ElasticConvBN(ElasticConv(middle, widest.width, 3), act, eps)

    def forward(self, x: Tensor, width: int, middle: int, residual: int) -> Tensor:
        x = self.first(x, middle)
        for conv in self.plain:
            x = conv(x, middle)
        for conv in self.residual[:residual]:  # as with the blocks of a stage, the first ones are used
            x = x + conv(x, middle)
        return F.max_pool2d(self.last(x, width), 3, 2, 1)

    def slices(self, channels: int, width: int, middle: int, residual: int) -> Slices:
        found = prefixed("first", self.first.slices(channels, middle))
        for i, conv in enumerate(self.plain):
            assert isinstance(conv, ElasticConvBN)
            found |= prefixed(f"plain.{i}", conv.slices(middle, middle))
        for i, conv in enumerate(self.residual[:residual]):
            assert isinstance(conv, ElasticConvBN)
            found |= prefixed(f"residual.{i}", conv.slices(middle, middle))
        return found | prefixed("last", self.last.slices(middle, width))


def elastic_stem(widest: StemSpec, eps: float) -> ElasticConvBN | ElasticDeepStem:
    """The stem of a supernet; in a call it takes an architecture's first width and its `Arch.stem`.

    Args:
        widest: the stem of the largest architecture.
        eps: epsilon of BatchNorm.
    """
    if widest.deep:
        return ElasticDeepStem(widest, eps)
    conv = ElasticConv(widest.channels, widest.width, widest.kernel, widest.stride, widest.same)
    stem = ElasticPooledStem if widest.pool else ElasticConvBN
    return stem(conv, widest.act, eps)


class DeepStem(nn.Module):
    """ResNet-D's stem as plain layers."""

    def __init__(self, spec: StemSpec, eps: float):
        super().__init__()
        self.first = ConvBN(spec.channels, spec.middle, 3, spec.stride, spec.act, eps)
        self.plain = nn.Sequential()
        for _ in range(spec.plain):
            self.plain.append(ConvBN(spec.middle, spec.middle, 3, 1, spec.act, eps))
        self.residual = nn.ModuleList()
        for _ in range(spec.residual):
            self.residual.append(ConvBN(spec.middle, spec.middle, 3, 1, spec.act, eps))
        self.last = ConvBN(spec.middle, spec.width, 3, 1, spec.act, eps)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.first(x))
        for conv in self.residual:
            x = x + conv(x)
        return self.pool(self.last(x))


def plain_stem(spec: StemSpec, eps: float) -> ConvBN | DeepStem:
    """The stem of a subnet. eps: epsilon of BatchNorm."""
    if spec.deep:
        return DeepStem(spec, eps)
    stem = ConvBN(spec.channels, spec.width, spec.kernel, spec.stride, spec.act, eps, same=spec.same)
    if spec.pool:
        stem.pool = nn.MaxPool2d(3, 2, 1)  # the last layer of the sequence
    return stem


def cost_of_stem(spec: StemSpec) -> tuple[int, int]:
    """(MACs, parameters)."""
    # In a deep stem every kernel is 3 x 3.
    weights = sum(spec.kernel**2 * inp * out for inp, out in pairwise(spec.widths))
    # Only the first convolution has a stride, so all of them write maps of the same side.
    return spec.size_after**2 * weights, weights + 2 * sum(spec.widths[1:])


def memory_of_stem(spec: StemSpec) -> int:
    """The most float32 numbers alive at once, the image included."""
    after = spec.size_after**2
    maps = [after * width for width in spec.widths[1:]]
    # A residual convolution's sum is written over one of its two inputs, so it needs no map of its own.
    alive = chain_memory([spec.size**2 * spec.channels, *maps])
    if not spec.pool:
        return alive
    pooled = halve(spec.size_after, 2) ** 2
    # The pool reads the widest map and writes a smaller one.
    return max(alive, (after + pooled) * spec.width)


def stored_of_stem(spec: StemSpec) -> tuple[int, int]:
    """(numbers in an exported ONNX file, entries of its graph)."""
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = cost_of_stem(spec)[1] - sum(spec.widths[1:])
    convolutions = len(spec.widths) - 1
    return numbers, convolutions * (2 + activation_entries(spec.act)) + spec.residual + spec.pool
