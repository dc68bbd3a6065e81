"""The supernet: a function of (image, architecture), with the weights of the largest network.

There is no `set_active_subnet`: `supernet(x, arch)` runs `arch`, and what it runs depends on nothing else. The widths, depths,
kernels, expansions and the resolution of `arch` select slices and blocks; the network is the MobileNetV3-style one of
BigNAS (arXiv:2003.11142) and AttentiveNAS (arXiv:2011.09011), as the space says.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.augment import resize
from ofa.cost import hidden_width, squeeze_width
from ofa.elastic import ElasticBatchNorm, ElasticConv, ElasticDepthwise, ElasticLinear, ElasticSqueezeExcite, Slices, prefixed
from ofa.fast import ACTIVATION
from ofa.space import Act, Arch, Head, Space, Stage


class Regularisation(NamedTuple):
    """What only the largest network gets: dropout before the classifier, and drop-connect that grows with the block index."""

    dropout: float
    drop_connect: float
    first_stage: int
    generator: torch.Generator


class ConvBN(nn.Module):
    """Elastic convolution, BatchNorm, activation (none if `act` is None)."""

    def __init__(self, conv: ElasticConv | ElasticDepthwise, width: int, act: Act | None):
        super().__init__()
        self.conv, self.bn = conv, ElasticBatchNorm(width)
        self.act = act

    def forward(self, x: Tensor, size: int) -> Tensor:
        return self.bn(self.conv(x, size), self.act)

    def slices(self, inp: int, out: int, size: int) -> Slices:
        """size: what `forward` gets, the output width or the kernel."""
        conv = self.conv.slices(inp, size)
        return prefixed("conv", conv) | prefixed("bn", self.bn.slices(out))


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze-and-excitation, project, shortcut."""

    def __init__(self, stage: Stage, inputs: int, stride: int, projected: bool, residual: bool):
        """residual: every architecture adds a shortcut here; the block then starts as its shortcut (zero gamma, BigNAS)."""
        super().__init__()
        width, kernel = stage.width[-1], stage.kernel[-1]
        hidden = hidden_width(inputs, stage.expand[-1])
        self.stride = stride
        self.expand = None if stage.expand == (1,) else ConvBN(ElasticConv(inputs, hidden), hidden, stage.act)
        self.depthwise = ConvBN(ElasticDepthwise(hidden, kernel, stride), hidden, stage.act)
        self.se = ElasticSqueezeExcite(hidden, squeeze_width(hidden)) if stage.se else None
        self.project = ConvBN(ElasticConv(hidden, width), width, None)
        self.shortcut = ElasticConv(inputs, width) if projected else None
        if residual:
            nn.init.zeros_(self.project.bn.weight)

    def forward(self, x: Tensor, width: int, kernel: int, expand: float, drop: float, generator: torch.Generator | None) -> Tensor:
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
        return y if self.shortcut is None else y + self._projected(x, width)

    def _projected(self, x: Tensor, width: int) -> Tensor:
        assert self.shortcut is not None
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return self.shortcut(x, width) if x.shape[1] != width else x

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


class ElasticHead(nn.Module):
    """1x1 convolution, pool, and for the MobileNetV3 form one more linear layer. The result are features."""

    def __init__(self, head: Head, inputs: int):
        super().__init__()
        width = head.width[-1]
        wide = head.expand * inputs if head.expand else width
        self.ratio = head.expand
        self.conv = ConvBN(ElasticConv(inputs, wide), wide, head.act)
        self.mix = ElasticLinear(wide, width, bias=False) if head.expand else None
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
        self.stem = ConvBN(ElasticConv(channels, space.stem.width[-1], 3, space.stem.stride), space.stem.width[-1], space.stem.act)
        self.stages = nn.ModuleList()
        widths = space.stem.width
        for stage in space.stages:
            blocks = nn.ModuleList()
            for i in range(stage.depth[-1]):
                # Only a first block can change the width, so only it may need a projection or lack a shortcut.
                projected = space.shortcut == "projected" and i == 0
                residual = projected or i > 0 or (stage.stride == 1 and widths == stage.width and len(widths) == 1)
                blocks.append(Block(stage, widths[-1], stage.stride if i == 0 else 1, projected, residual))
                widths = stage.width
            self.stages.append(blocks)
        self.head = ElasticHead(space.head, widths[-1])
        self.classifier = ElasticLinear(space.head.width[-1], classes, bias=True)

    def forward(self, x_NCHW: Tensor, arch: Arch, regularise: Regularisation | None = None) -> Tensor:
        """Logits (N, classes) of `arch`, which resizes the square images to its own resolution (bicubic).

        `arch` must be of this space (`space.encode` checks one); it is not checked again here.
        """
        x = self.stem(resize(x_NCHW, arch.resolution), arch.width[0])
        total = sum(arch.depth)
        for index, (block, width, kernel, expand, stage) in enumerate(self._blocks(arch)):
            drop = 0.0
            if regularise is not None and stage >= regularise.first_stage:
                drop = regularise.drop_connect * index / total
            x = block(x, width, kernel, expand, drop, regularise.generator if regularise else None)
        x = self.head(x, arch.width[-1])
        if regularise is not None and regularise.dropout > 0:
            x = dropout(x, regularise.dropout, regularise.generator)
        logits: Tensor = self.classifier(x, self.classes)
        return logits

    def slices(self, arch: Arch) -> Slices:
        """Every tensor that `arch` uses, a view of the shared one, under the names of `ofa.subnet.Subnet`."""
        found = prefixed("stem", self.stem.slices(self.channels, arch.width[0], arch.width[0]))
        inputs = arch.width[0]
        for index, (block, width, kernel, expand, _) in enumerate(self._blocks(arch)):
            found |= prefixed(f"blocks.{index}", block.slices(inputs, width, kernel, expand))
            inputs = width
        found |= prefixed("head", self.head.slices(inputs, arch.width[-1]))
        return found | prefixed("classifier", self.classifier.slices(arch.width[-1], self.classes))

    def _blocks(self, arch: Arch) -> Iterator[tuple[Block, int, int, float, int]]:
        """The active blocks with their width, kernel, expansion and stage."""
        for stage, blocks in enumerate(self.stages):
            assert isinstance(blocks, nn.ModuleList)
            for i in range(arch.depth[stage]):
                slot, block = self.space.slot(stage, i), blocks[i]
                assert isinstance(block, Block)
                yield block, arch.width[stage + 1], arch.kernel[slot], arch.expand[slot], stage


def drop_connect(x_NCHW: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Whole images of a residual branch dropped with probability `rate`, the rest scaled up: stochastic depth (arXiv:1603.09382)."""
    keep = torch.rand((len(x_NCHW), 1, 1, 1), generator=generator, device=x_NCHW.device) >= rate
    return x_NCHW * (keep / (1 - rate)).to(x_NCHW.dtype)


def dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Entries zeroed with probability `rate`, the others scaled up."""
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * (keep / (1 - rate)).to(x.dtype)
