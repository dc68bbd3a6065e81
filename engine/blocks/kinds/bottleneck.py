"""ResNet's bottleneck: 1x1, k x k with the stride, 1x1; activation after the sum with the shortcut.

Sources: ResNet (2015, arXiv:1512.03385) with the stride in the middle, as torchvision and timm have it, and
ResNet-D (2018, arXiv:1812.01187), elastic as in OFA's ResNet50-D (2020, arXiv:1908.09791). Where stride or
width change, the shortcut is that of `engine.blocks.shortcut`. The expansion multiplies the output width, not
the input width. In RegNet (2020, arXiv:2003.13678) the k x k convolution has groups of a fixed width, and
squeeze-and-excitation may follow it (RegNetY).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.blocks.activation import ACTIVATION_LAYERS
from engine.blocks.elastic import (
    DropConnect,
    ElasticBatchNorm,
    ElasticConv,
    ElasticConvBN,
    ElasticGroupedConv,
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
    shortcut_memory,
)
from engine.blocks.plain import ConvBN
from engine.blocks.shortcut import ElasticShortcut, channels_beside, plain_shortcut
from engine.blocks.sizes import chain_memory, hidden_width, make_divisible
from engine.blocks.sorting import Channels, sort_between
from engine.blocks.squeeze import (
    ElasticSqueezeExcite,
    SqueezeExcite,
    cost_of_squeeze,
    entries_of_squeeze,
    memory_of_squeeze,
)
from engine.compute.fast import ACTIVATION


class ElasticBottleneck(ElasticBlock):
    """The block in the supernet. It starts as its shortcut, since the last BatchNorm's scale is zero."""

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps, inputs = settings.act, settings.bn_eps, position.inputs
        hidden = _hidden(settings, width, settings.expands[-1])
        self.settings, self.act = settings, ACTIVATION[act]
        self.reduce = ElasticConvBN(ElasticConv(inputs, hidden), act, eps)
        (kernel,) = settings.kernels
        if settings.group:
            conv: ElasticConv = ElasticGroupedConv(hidden, settings.group, kernel, position.stride)
        else:
            conv = ElasticConv(hidden, hidden, kernel, position.stride)
        self.conv = ElasticConvBN(conv, act, eps)
        self.se = None
        if settings.se:
            self.se = ElasticSqueezeExcite(settings.se, inputs, hidden)
        self.project = ElasticConvBN(ElasticConv(hidden, width), None, eps)
        self.shortcut = ElasticShortcut(settings, position, width) if position.changes else None
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm:
        return self.project.bn

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        hidden = _hidden(self.settings, choice.width, choice.expand)
        y = self.conv(self.reduce(x, hidden), hidden, choice.kernel)
        if self.se is not None:
            y = self.se(y, x.shape[1])
        y = self.project(y, choice.width)
        # As in every kind, drop-connect is only for identity shortcuts.
        if self.shortcut is not None:
            x = self.shortcut(x, choice.width)
        elif drop is not None:
            y = drop_connect(y, drop)
        return self.act(y + x)

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        hidden = _hidden(self.settings, choice.width, choice.expand)
        found = prefixed("reduce", self.reduce.slices(inputs, hidden))
        found |= prefixed("conv", self.conv.slices(hidden, hidden, choice.kernel))
        if self.se is not None:
            found |= prefixed("se", self.se.slices(inputs, hidden))
        found |= prefixed("project", self.project.slices(hidden, choice.width))
        if self.shortcut is not None:
            found |= prefixed("shortcut", self.shortcut.slices(inputs, choice.width))
        return found

    def map_channels(self) -> tuple[Channels, Channels]:
        return channels_beside(self.reduce, self.project, self.shortcut)

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        if self.settings.group:
            return  # a channel is computed from those of its group, so none can move to another
        cuts = {hidden_width(width, expand) for width in outputs for expand in expands}
        # There are two hidden maps here, before and after the k x k convolution, and each has its own order.
        sort_between(self.conv, self.project, cuts)
        sort_between(self.reduce, self.conv, cuts)


class Bottleneck(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.reduce = ConvBN(spec.inp, spec.hidden, 1, 1, spec.act, eps)
        self.conv = ConvBN(
            spec.hidden, spec.hidden, spec.kernel, spec.stride, spec.act, eps, groups=spec.groups
        )
        self.se = SqueezeExcite(spec.se, spec.hidden, spec.squeeze) if spec.se else None
        self.project = ConvBN(spec.hidden, spec.out, 1, 1, None, eps)
        self.shortcut = plain_shortcut(spec, eps) if spec.projects else None
        self.act = ACTIVATION_LAYERS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.reduce(x))
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.act(y + x)


def _hidden(settings: BlockSettings, width: int, expand: float) -> int:
    """Channels inside a block of this output width: whole groups if it has groups."""
    if settings.group:
        return make_divisible(round(width * expand), settings.group)
    return hidden_width(width, expand)


def _check(settings: BlockSettings) -> Complaint | None:
    if len(settings.kernels) > 1:
        return Complaint("kernel", f"must be one kernel, since bottlenecks take no more: {settings.kernels}")
    if settings.group and len(settings.expands) > 1:
        return Complaint(
            "expand",
            f"must be one choice where there is a group_width, since groups are not sorted: "
            f"{settings.expands}",
        )
    if settings.se and not settings.group:
        return Complaint(
            "se", "must be false, since bottlenecks have no squeeze-and-excitation without a group_width"
        )
    if settings.projected:
        return Complaint(
            "block",
            "is bottleneck, whose shortcuts are convolutions where they must be; take shortcut: identity",
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    hidden = _hidden(settings, choice.width, choice.expand)
    return BlockSpec(
        block="bottleneck",
        size=size,
        inp=position.inputs,
        hidden=hidden,
        out=choice.width,
        kernel=choice.kernel,
        stride=position.stride,
        expands=True,
        se=settings.se,
        act=settings.act,
        residual=True,
        projects=position.changes,
        strided=position.stride > 1 and not settings.pooled,
        groups=hidden // settings.group if settings.group else 1,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    reduce = spec.inp * spec.hidden  # runs before the stride, all others after it
    later = spec.kernel**2 * spec.hidden**2 // spec.groups + spec.hidden * spec.out
    norms = 4 * spec.hidden + 2 * spec.out
    if spec.projects:
        later += spec.inp * spec.out
        norms += 2 * spec.out
    macs, params = spec.size**2 * reduce + spec.size_after**2 * later, reduce + later + norms
    if spec.se:
        more_macs, more_params = cost_of_squeeze(spec.hidden, spec.squeeze)
        macs += more_macs
        params += more_params
    return macs, params


def _memory(spec: BlockSpec) -> int:
    before, after = spec.size**2, spec.size_after**2
    maps = [spec.inp * before, spec.hidden * before, spec.hidden * after, spec.out * after]
    # The input is held to the end: every bottleneck has a shortcut.
    alive = [chain_memory(maps, held=spec.inp * before), shortcut_memory(spec)]
    if spec.se:
        alive.append(memory_of_squeeze(after, spec.hidden, spec.squeeze) + spec.inp * before)
    return max(alive)


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - 2 * spec.hidden - spec.out - spec.projects * spec.out
    # A convolution and its tensors are two entries. Three convolutions; an activation after two of them and
    # after the sum; and the sum itself.
    entries = 3 * (2 + activation_entries(spec.act)) + 1 + entries_of_squeeze(spec.se)
    return numbers, entries + 2 * spec.projects + spec.pools


BOTTLENECK = BlockKind(
    description="1x1, k x k, 1x1, activation after the sum (ResNet, RegNet)",
    check=_check,
    spec=_spec,
    elastic=ElasticBottleneck,
    plain=Bottleneck,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=None,
    own_fields=("pooled", "group_width"),
)
