"""The supernet: a function of (image, architecture), with the weights of the largest network.

There is no `set_active_subnet`: `supernet(x, arch)` runs `arch`, and what it runs depends on nothing else.
The widths, depths, kernels, expansions and the resolution of `arch` select slices and blocks; the network is
the MobileNet-style one of BigNAS (arXiv:2003.11142), AttentiveNAS (arXiv:2011.09011) and OFA, or OFA's
ResNet50-D (arXiv:1908.09791), as the space says.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.fast import ACTIVATION
from engine.data.augment import resize
from ofa.blocks.elastic import (
    ElasticBatchNorm,
    ElasticConv,
    ElasticDepthwise,
    ElasticLinear,
    ElasticSqueezeExcite,
    Slices,
    TransformedDepthwise,
    prefixed,
)
from ofa.blocks.layer_specs import hidden_width, squeeze_width
from ofa.space.space import Act, Arch, Deep, Head, Space, Stage, Stem


class Regularisation(NamedTuple):
    """What only the largest network gets: dropout before the classifier, and drop-connect that grows with the
    block index."""

    dropout: float
    drop_connect: float
    first_stage: int
    generator: torch.Generator


class ConvBN(nn.Module):
    """Elastic convolution, BatchNorm, activation (none if `act` is None)."""

    def __init__(self, conv: ElasticConv | ElasticDepthwise, width: int, act: Act | None, eps: float):
        super().__init__()
        self.conv, self.bn = conv, ElasticBatchNorm(width, eps)
        self.act = act

    def forward(self, x: Tensor, size: int) -> Tensor:
        return self.bn(self.conv(x, size), self.act)

    def slices(self, inp: int, out: int, size: int) -> Slices:
        """size: what `forward` gets, the output width or the kernel."""
        conv = self.conv.slices(inp, size)
        return prefixed("conv", conv) | prefixed("bn", self.bn.slices(out))


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-and-excitation, project, shortcut."""

    def __init__(self, space: Space, stage: Stage, inputs: int, stride: int, changes: bool):
        """changes: `Space.changes_width`. A block that always has a shortcut starts as that (zero gamma,
        BigNAS)."""
        super().__init__()
        width, eps = stage.width[-1], space.bn_eps
        hidden = hidden_width(inputs, stage.expand[-1])
        self.stride, self.projected = stride, space.shortcut == "projected"
        self.expand = (
            None if stage.expand == (1,) else ConvBN(ElasticConv(inputs, hidden), hidden, stage.act, eps)
        )
        if space.kernels == "transform" and len(stage.kernel) > 1:
            depthwise: ElasticDepthwise = TransformedDepthwise(hidden, stage.kernel, stride)
        else:
            depthwise = ElasticDepthwise(hidden, stage.kernel[-1], stride)
        self.depthwise = ConvBN(depthwise, hidden, stage.act, eps)
        self.se = ElasticSqueezeExcite(hidden, squeeze_width(hidden)) if stage.se else None
        self.project = ConvBN(ElasticConv(hidden, width), width, None, eps)
        self.shortcut = ElasticConv(inputs, width) if self.projected and changes else None
        if self.projected or not changes:
            nn.init.zeros_(self.project.bn.weight)

    def forward(
        self,
        x: Tensor,
        width: int,
        kernel: int,
        expand: float,
        drop: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        hidden = hidden_width(x.shape[1], expand)
        y = x if self.expand is None else self.expand(x, hidden)
        y = self.depthwise(y, kernel)
        y = y if self.se is None else self.se(y, squeeze_width(hidden))
        y = self.project(y, width)
        same = self.stride == 1 and x.shape[1] == width
        if drop > 0 and same:
            y = drop_connect(y, drop, generator)
        if same:
            return y + x
        if not self.projected:
            return y
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return y + (x if self.shortcut is None or x.shape[1] == width else self.shortcut(x, width))

    def slices(self, inputs: int, width: int, kernel: int, expand: float) -> Slices:
        hidden = hidden_width(inputs, expand)
        found: Slices = {}
        if self.expand is not None:
            found |= prefixed("expand", self.expand.slices(inputs, hidden, hidden))
        found |= prefixed("depthwise", self.depthwise.slices(hidden, hidden, kernel))
        if self.se is not None:
            found |= prefixed("se", self.se.slices(hidden, squeeze_width(hidden)))
        found |= prefixed("project", self.project.slices(hidden, width, width))
        if self.shortcut is not None and inputs != width:
            found |= prefixed("shortcut", self.shortcut.slices(inputs, width))
        return found


class Bottleneck(nn.Module):
    """ResNet-D bottleneck (arXiv:1812.01187): 1x1, k x k with the stride, 1x1; activation after the sum with
    the shortcut.

    Where stride or width change, the shortcut is an average pool, a 1x1 convolution and BatchNorm.
    """

    def __init__(self, space: Space, stage: Stage, inputs: int, stride: int, changes: bool):
        """changes: `Space.changes_width`."""
        super().__init__()
        width, kernel, eps = stage.width[-1], stage.kernel[-1], space.bn_eps
        hidden = hidden_width(width, stage.expand[-1])
        self.stride, self.act = stride, ACTIVATION[stage.act]
        self.reduce = ConvBN(ElasticConv(inputs, hidden), hidden, stage.act, eps)
        self.conv = ConvBN(ElasticConv(hidden, hidden, kernel, stride), hidden, stage.act, eps)
        self.project = ConvBN(ElasticConv(hidden, width), width, None, eps)
        self.shortcut = ConvBN(ElasticConv(inputs, width), width, None, eps) if changes else None
        nn.init.zeros_(self.project.bn.weight)

    def forward(
        self,
        x: Tensor,
        width: int,
        kernel: int,
        expand: float,
        drop: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        hidden = hidden_width(width, expand)
        y = self.project(self.conv(self.reduce(x, hidden), hidden), width)
        if self.shortcut is not None:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
            x = self.shortcut(x, width)
        elif drop > 0:
            y = drop_connect(y, drop, generator)
        return self.act(y + x)

    def slices(self, inputs: int, width: int, kernel: int, expand: float) -> Slices:
        hidden = hidden_width(width, expand)
        found = prefixed("reduce", self.reduce.slices(inputs, hidden, hidden))
        found |= prefixed("conv", self.conv.slices(hidden, hidden, hidden))
        found |= prefixed("project", self.project.slices(hidden, width, width))
        return (
            found
            if self.shortcut is None
            else found | prefixed("shortcut", self.shortcut.slices(inputs, width, width))
        )


class DeepStem(nn.Module):
    """ResNet-D's stem: a stride-2 convolution, up to `residual` residual ones, one to the stem's width, and a
    max pool."""

    def __init__(self, stem: Stem, deep: Deep, channels: int, eps: float):
        super().__init__()
        middle, width = deep.middle[-1], stem.width[-1]
        self.first = ConvBN(ElasticConv(channels, middle, 3, stem.stride), middle, stem.act, eps)
        self.residual = nn.ModuleList(
            ConvBN(ElasticConv(middle, middle, 3), middle, stem.act, eps) for _ in range(deep.residual[-1])
        )
        self.last = ConvBN(ElasticConv(middle, width, 3), width, stem.act, eps)

    def forward(self, x: Tensor, width: int, middle: int, residual: int) -> Tensor:
        x = self.first(x, middle)
        for conv in self.residual[:residual]:
            x = x + conv(x, middle)
        return F.max_pool2d(self.last(x, width), 3, 2, 1)

    def slices(self, channels: int, width: int, middle: int, residual: int) -> Slices:
        found = prefixed("first", self.first.slices(channels, middle, middle))
        for i, conv in enumerate(self.residual[:residual]):
            assert isinstance(conv, ConvBN)
            found |= prefixed(f"residual.{i}", conv.slices(middle, middle, middle))
        return found | prefixed("last", self.last.slices(middle, width, width))


class ElasticHead(nn.Module):
    """1x1 convolution, pool, and for the MobileNetV3 form one more linear layer. The result are features."""

    def __init__(self, head: Head, inputs: int, eps: float):
        super().__init__()
        width = head.width[-1]
        wide = head.expand * inputs if head.expand else width
        self.ratio = head.expand
        self.conv = ConvBN(ElasticConv(inputs, wide), wide, head.act, eps)
        self.mix = ElasticLinear(wide, width, head.bias) if head.expand else None
        self.act = ACTIVATION[head.act]

    def forward(self, x: Tensor, width: int) -> Tensor:
        wide = self.ratio * x.shape[1] if self.ratio else width
        x = self.conv(x, wide).mean((2, 3))
        return x if self.mix is None else self.act(self.mix(x, width))

    def slices(self, inputs: int, width: int) -> Slices:
        wide = self.ratio * inputs if self.ratio else width
        found = prefixed("conv", self.conv.slices(inputs, wide, wide))
        return found if self.mix is None else found | prefixed("mix", self.mix.slices(wide, width))


class Supernet(nn.Module):
    """All architectures of `space` in one set of weights.

    Args:
        space: the choices.
        classes: outputs of the classifier.
        channels: input channels.
    """

    def __init__(self, space: Space, classes: int, channels: int = 3):
        super().__init__()
        self.space, self.classes, self.channels = space, classes, channels
        stem, eps = space.stem, space.bn_eps
        if stem.deep:
            self.stem: ConvBN | DeepStem = DeepStem(stem, stem.deep, channels, eps)
        else:
            self.stem = ConvBN(
                ElasticConv(channels, stem.width[-1], 3, stem.stride), stem.width[-1], stem.act, eps
            )
        self.stages = nn.ModuleList()
        inputs = stem.width[-1]
        for i, stage in enumerate(space.stages):
            kind, blocks = Bottleneck if stage.block == "bottleneck" else Block, nn.ModuleList()
            for j in range(stage.depth[-1]):
                blocks.append(
                    kind(space, stage, inputs, stage.stride if j == 0 else 1, space.changes_width(i, j))
                )
                inputs = stage.width[-1]
            self.stages.append(blocks)
        self.head = ElasticHead(space.head, inputs, eps) if space.head else None
        self.classifier = ElasticLinear(
            space.head.width[-1] if space.head else inputs, classes, bias=True, classifier=True
        )

    def forward(self, x_NCHW: Tensor, arch: Arch, regularise: Regularisation | None = None) -> Tensor:
        """Logits (N, classes) of `arch`, which resizes the square images to its own resolution (bicubic).

        `arch` must be of this space (`space.encode` checks one); it is not checked again here.
        """
        x = self.stem(resize(x_NCHW, arch.resolution), arch.width[0], *arch.stem)
        total = sum(arch.depth)
        for index, (block, width, kernel, expand, stage) in enumerate(self._blocks(arch)):
            drop = 0.0
            if regularise is not None and stage >= regularise.first_stage:
                drop = regularise.drop_connect * index / total
            x = block(x, width, kernel, expand, drop, regularise.generator if regularise else None)
        x = x.mean((2, 3)) if self.head is None else self.head(x, arch.width[-1])
        if regularise is not None and regularise.dropout > 0:
            x = dropout(x, regularise.dropout, regularise.generator)
        logits: Tensor = self.classifier(x, self.classes)
        return logits

    def slices(self, arch: Arch) -> Slices:
        """Every tensor that `arch` uses, cut from the shared one, under the names of `ofa.subnet.Subnet`."""
        first = arch.width[0]
        stem = (
            self.stem.slices(self.channels, first, *arch.stem)
            if isinstance(self.stem, DeepStem)
            else self.stem.slices(self.channels, first, first)
        )
        found = prefixed("stem", stem)
        inputs = arch.width[0]
        for index, (block, width, kernel, expand, _) in enumerate(self._blocks(arch)):
            found |= prefixed(f"blocks.{index}", block.slices(inputs, width, kernel, expand))
            inputs = width
        if self.head is not None:
            found |= prefixed("head", self.head.slices(inputs, arch.width[-1]))
        return found | prefixed("classifier", self.classifier.slices(arch.width[-1], self.classes))

    def _blocks(self, arch: Arch) -> Iterator[tuple[Block | Bottleneck, int, int, float, int]]:
        """The active blocks with their width, kernel, expansion and stage."""
        for stage, blocks in enumerate(self.stages):
            assert isinstance(blocks, nn.ModuleList)
            for i in range(arch.depth[stage]):
                slot, block = self.space.slot(stage, i), blocks[i]
                assert isinstance(block, Block | Bottleneck)
                yield block, arch.width[stage + 1], arch.kernel[slot], arch.expand[slot], stage


def drop_connect(x_NCHW: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Whole images of a residual branch dropped with probability `rate`, the rest scaled up: stochastic depth
    (arXiv:1603.09382)."""
    keep = torch.rand((len(x_NCHW), 1, 1, 1), generator=generator, device=x_NCHW.device) >= rate
    return x_NCHW * (keep / (1 - rate)).to(x_NCHW.dtype)


def dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Entries zeroed with probability `rate`, the others scaled up."""
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)
