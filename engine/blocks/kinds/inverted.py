"""The inverted bottleneck: 1x1 expand, depthwise, squeeze-and-excitation, 1x1 project.

Sources: MobileNetV2 (2018, arXiv:1801.04381) and V3 (2019, arXiv:1905.02244); shortcuts as in BigNAS (2020,
arXiv:2003.11142), or pooled and projected ones as in AttentiveNAS (2021, arXiv:2011.09011). The 1x1
convolutions of plain blocks may have groups, with a shuffle of the channels between them, as in FBNet (2019,
arXiv:1812.03443); those of a supernet have none.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from engine.blocks.elastic import (
    DropConnect,
    ElasticBatchNorm,
    ElasticConv,
    ElasticConvBN,
    Slices,
    drop_connect,
    prefixed,
    zero_scale,
)
from engine.blocks.kind import (
    BlockChoice,
    BlockKind,
    BlockPosition,
    BlockSettings,
    BlockSpec,
    Complaint,
    ElasticBlock,
    activation_entries,
    describe_kernel_and_expansion,
    elastic_depthwise,
    shortcut_memory,
)
from engine.blocks.plain import ChannelShuffle, ConvBN
from engine.blocks.sizes import chain_memory, hidden_width
from engine.blocks.sorting import Channels, sort_hidden, written_by
from engine.blocks.squeeze import (
    ElasticSqueezeExcite,
    Squeeze,
    SqueezeExcite,
    cost_of_squeeze,
    entries_of_squeeze,
    memory_of_squeeze,
)
from engine.errors import UserError


class ElasticInverted(ElasticBlock):
    """The block in the supernet.

    A block that has a shortcut in every architecture starts as that shortcut: the scale of its last BatchNorm
    is zero (BigNAS).
    """

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps = settings.act, settings.bn_eps
        hidden = hidden_width(position.inputs, settings.expands[-1])
        self.stride, self.projected = position.stride, settings.projected
        self.expand = None
        # `_check` keeps a space from mixing expansion 1 with others: either all architectures expand or none.
        if settings.expands != (1,):
            self.expand = ElasticConvBN(ElasticConv(position.inputs, hidden), act, eps)
        self.depthwise = ElasticConvBN(elastic_depthwise(settings, hidden, self.stride), act, eps)
        self.se = None
        if settings.se:
            self.se = ElasticSqueezeExcite(settings.se, position.inputs, hidden)
        self.project = ElasticConvBN(ElasticConv(hidden, width), None, eps)
        # Where widths are elastic they may agree in one architecture and differ in another: the convolution
        # is there if some architecture needs it, and used by those that do.
        self.shortcut = None
        if self.projected and position.changes:
            self.shortcut = ElasticConv(position.inputs, width)
        self.always_residual = self.projected or not position.changes
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm | None:
        return self.project.bn if self.always_residual else None

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        width, kernel, expand = choice
        hidden = hidden_width(x.shape[1], expand)
        y = x
        if self.expand is not None:
            y = self.expand(y, hidden)
        y = self.depthwise(y, hidden, kernel)
        if self.se is not None:
            y = self.se(y, x.shape[1])
        y = self.project(y, width)
        # Drop-connect acts only where the shortcut is the identity: a dropped image then passes unchanged.
        if self.stride == 1 and x.shape[1] == width:
            y = y if drop is None else drop_connect(y, drop)
            return y + x
        if not self.projected:
            return y
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        if self.shortcut is not None and x.shape[1] != width:
            x = self.shortcut(x, width, 1)
        return y + x

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        width, kernel, expand = choice
        hidden = hidden_width(inputs, expand)
        found: Slices = {}
        if self.expand is not None:
            found |= prefixed("expand", self.expand.slices(inputs, hidden))
        found |= prefixed("depthwise", self.depthwise.slices(hidden, hidden, kernel))
        if self.se is not None:
            found |= prefixed("se", self.se.slices(inputs, hidden))
        found |= prefixed("project", self.project.slices(hidden, width))
        if self.shortcut is not None and inputs != width:
            found |= prefixed("shortcut", self.shortcut.slices(inputs, width, 1))
        return found

    def map_channels(self) -> tuple[Channels, Channels]:
        inputs = Channels([], [])
        output = Channels(written_by(self.project), [])
        if self.expand is not None:
            inputs.readers.append(self.expand.conv.weight)
        else:
            # Everything up to the projection works on the channels of the block's input.
            inputs.writers.extend(written_by(self.depthwise))
            inputs.readers.append(self.project.conv.weight)
            if self.se is not None:
                inputs.writers.extend(self.se.writers())
                inputs.readers.append(self.se.reduce.weight)
        if self.shortcut is not None:
            inputs.readers.append(self.shortcut.weight)
            output.writers.append(self.shortcut.weight)
        return inputs, output

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        if self.expand is None:
            return  # the depthwise convolution then works on the block's input, whose order is not its own
        # The depthwise convolution has no input axis: what it writes for a channel belongs to that channel.
        writers = written_by(self.expand) + written_by(self.depthwise)
        sort_hidden(writers, self.project, self.se, inputs, expands)


class Inverted(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.expand = None
        if spec.expands:
            self.expand = ConvBN(spec.inp, spec.hidden, 1, 1, spec.act, eps, spec.groups)
        self.shuffle = ChannelShuffle(spec.hidden, spec.groups) if spec.groups > 1 else None
        self.depthwise = ConvBN(
            spec.hidden,
            spec.hidden,
            spec.kernel,
            spec.stride,
            spec.act,
            eps,
            groups=spec.hidden,
            same=spec.same,
        )
        self.se = SqueezeExcite(spec.se, spec.hidden, spec.squeeze) if spec.se else None
        self.project = ConvBN(spec.hidden, spec.out, 1, 1, None, eps, spec.groups)
        self.residual = spec.residual
        self.pool = nn.AvgPool2d(spec.stride) if spec.residual and spec.stride > 1 else None
        self.shortcut = nn.Conv2d(spec.inp, spec.out, 1, bias=False) if spec.projects else None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        if self.shuffle is not None:
            y = self.shuffle(y)
        y = self.depthwise(y)
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        if not self.residual:
            return y
        if self.pool is not None:
            x = self.pool(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return y + x


def _check(settings: BlockSettings) -> Complaint | None:
    if 1 in settings.expands and len(settings.expands) > 1:
        return Complaint("expand", f"mixes 1, which has no expansion layer, with others: {settings.expands}")
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    inp, stride, changes = position.inputs, position.stride, position.changes
    width, kernel, expand = choice
    identity = stride == 1 and inp == width
    return BlockSpec(
        block="inverted",
        size=size,
        inp=inp,
        hidden=hidden_width(inp, expand),
        out=width,
        kernel=kernel,
        stride=stride,
        expands=settings.expands != (1,),
        se=settings.se,
        act=settings.act,
        residual=settings.projected or identity,
        projects=settings.projected and changes and inp != width,
        same=settings.same and stride > 1,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    area, hidden = spec.size_after**2, spec.hidden
    weights = spec.kernel**2 * hidden + hidden * spec.out // spec.groups
    macs = area * weights
    params = weights + 2 * hidden + 2 * spec.out  # with scale and shift of two BatchNorms
    if spec.expands:
        macs += spec.size**2 * spec.inp * hidden // spec.groups
        params += spec.inp * hidden // spec.groups + 2 * hidden
    if spec.se:
        more_macs, more_params = cost_of_squeeze(hidden, spec.squeeze)
        macs += more_macs
        params += more_params
    if spec.projects:  # this convolution has no BatchNorm
        macs += area * spec.inp * spec.out
        params += spec.inp * spec.out
    return macs, params


def _memory(spec: BlockSpec) -> int:
    before, after = spec.size**2, spec.size_after**2
    maps = [spec.inp * before]
    if spec.expands:
        maps.append(spec.hidden * before)
    if spec.groups > 1:
        maps.append(spec.hidden * before)  # the shuffle copies
    maps += [spec.hidden * after, spec.out * after]
    held = spec.inp * before if spec.residual else 0
    alive = [chain_memory(maps, held), shortcut_memory(spec)]
    if spec.se:
        alive.append(memory_of_squeeze(after, spec.hidden, spec.squeeze) + held)
    return max(alive)


def _stored(spec: BlockSpec) -> tuple[int, int]:
    layers = 1 + spec.expands  # with an activation; the projection has none
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - layers * spec.hidden - spec.out
    entries = layers * (2 + activation_entries(spec.act)) + 2 + entries_of_squeeze(spec.se) + spec.residual
    pools = spec.residual and spec.stride > 1
    shuffles = 5 if spec.groups > 1 else 0  # two reshapes with their shapes, and a transpose
    return numbers, entries + 2 * spec.projects + pools + shuffles


def _published_key(spec: BlockSpec) -> str:
    if spec.se not in (None, Squeeze()):
        raise UserError(
            "Published latency tables have no squeeze-and-excitation but that of MobileNetV3 (se: true); "
            "measure this space instead."
        )
    inp = f"{spec.size}x{spec.size}x{spec.inp}"
    out = f"{spec.size_after}x{spec.size_after}x{spec.out}"
    # OFA's tables end every name with these flags and ProxylessNAS's end none; who reads a table drops them
    # where both are 0.
    key = (
        f"expanded_conv-input:{inp}-output:{out}-expand:{spec.hidden}-kernel:{spec.kernel}"
        f"-stride:{spec.stride}-idskip:{int(spec.residual)}"
    )
    flags = f"-se:{int(spec.se is not None)}-hs:{int(spec.act == 'hard_swish')}"
    return key if flags == "-se:0-hs:0" else key + flags


INVERTED = BlockKind(
    description="1x1, depthwise, 1x1 (MobileNet)",
    check=_check,
    spec=_spec,
    elastic=ElasticInverted,
    plain=Inverted,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=_published_key,
    pads_same=True,
)
