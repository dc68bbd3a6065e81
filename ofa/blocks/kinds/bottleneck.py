"""ResNet's bottleneck: 1x1, k x k with the stride, 1x1; activation after the sum with the shortcut.

Sources: ResNet (2015, arXiv:1512.03385) with the stride in the middle, as torchvision and timm have it, and
ResNet-D (2018, arXiv:1812.01187), elastic as in OFA's ResNet50-D (2020, arXiv:1908.09791). Where stride or
width change, the shortcut is that of `ofa.blocks.shortcut`. The expansion multiplies the output width, not
the input width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.compute.fast import ACTIVATION
from ofa.blocks.activation import ACTIVATION_LAYERS
from ofa.blocks.elastic import (
    DropConnect,
    ElasticBatchNorm,
    ElasticConv,
    ElasticConvBN,
    Slices,
    drop_connect,
    prefixed,
    zero_scale,
)
from ofa.blocks.kind import (
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
from ofa.blocks.plain import ConvBN
from ofa.blocks.shortcut import ElasticShortcut, plain_shortcut
from ofa.blocks.sizes import chain_memory, hidden_width
from ofa.blocks.sorting import sort_between


class ElasticBottleneck(ElasticBlock):
    """The block in the supernet. It starts as its shortcut, since the last BatchNorm's scale is zero."""

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps, inputs = settings.act, settings.bn_eps, position.inputs
        hidden = hidden_width(width, settings.expands[-1])
        self.act = ACTIVATION[act]
        self.reduce = ElasticConvBN(ElasticConv(inputs, hidden), act, eps)
        conv = ElasticConv(hidden, hidden, settings.kernels[-1], position.stride)
        self.conv = ElasticConvBN(conv, act, eps)
        self.project = ElasticConvBN(ElasticConv(hidden, width), None, eps)
        self.shortcut = ElasticShortcut(settings, position, width) if position.changes else None
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm:
        return self.project.bn

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        hidden = hidden_width(choice.width, choice.expand)
        y = self.project(self.conv(self.reduce(x, hidden), hidden, choice.kernel), choice.width)
        # As in every kind, drop-connect is only for identity shortcuts.
        if self.shortcut is not None:
            x = self.shortcut(x, choice.width)
        elif drop is not None:
            y = drop_connect(y, drop)
        return self.act(y + x)

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        hidden = hidden_width(choice.width, choice.expand)
        found = prefixed("reduce", self.reduce.slices(inputs, hidden))
        found |= prefixed("conv", self.conv.slices(hidden, hidden, choice.kernel))
        found |= prefixed("project", self.project.slices(hidden, choice.width))
        if self.shortcut is not None:
            found |= prefixed("shortcut", self.shortcut.slices(inputs, choice.width))
        return found

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        cuts = {hidden_width(width, expand) for width in outputs for expand in expands}
        # There are two hidden maps here, before and after the k x k convolution, and each has its own order.
        sort_between(self.conv, self.project, cuts)
        sort_between(self.reduce, self.conv, cuts)


class Bottleneck(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.reduce = ConvBN(spec.inp, spec.hidden, 1, 1, spec.act, eps)
        self.conv = ConvBN(spec.hidden, spec.hidden, spec.kernel, spec.stride, spec.act, eps)
        self.project = ConvBN(spec.hidden, spec.out, 1, 1, None, eps)
        self.shortcut = plain_shortcut(spec, eps) if spec.projects else None
        self.act = ACTIVATION_LAYERS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv(self.reduce(x)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.act(y + x)


def _check(settings: BlockSettings) -> Complaint | None:
    if len(settings.kernels) > 1:
        return Complaint("kernel", f"must be one kernel, since bottlenecks take no more: {settings.kernels}")
    if settings.se:
        return Complaint("se", "must be false, since bottlenecks have no squeeze-and-excitation")
    if settings.projected:
        return Complaint(
            "block",
            "is bottleneck, whose shortcuts are convolutions where they must be; take shortcut: identity",
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    return BlockSpec(
        block="bottleneck",
        size=size,
        inp=position.inputs,
        hidden=hidden_width(choice.width, choice.expand),
        out=choice.width,
        kernel=choice.kernel,
        stride=position.stride,
        expands=True,
        se=None,
        act=settings.act,
        residual=True,
        projects=position.changes,
        strided=position.stride > 1 and not settings.pooled,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    reduce = spec.inp * spec.hidden  # runs before the stride, all others after it
    later = spec.kernel**2 * spec.hidden**2 + spec.hidden * spec.out
    norms = 4 * spec.hidden + 2 * spec.out
    if spec.projects:
        later += spec.inp * spec.out
        norms += 2 * spec.out
    return spec.size**2 * reduce + spec.size_after**2 * later, reduce + later + norms


def _memory(spec: BlockSpec) -> int:
    before, after = spec.size**2, spec.size_after**2
    maps = [spec.inp * before, spec.hidden * before, spec.hidden * after, spec.out * after]
    # The input is held to the end: every bottleneck has a shortcut.
    return max(chain_memory(maps, held=spec.inp * before), shortcut_memory(spec))


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - 2 * spec.hidden - spec.out - spec.projects * spec.out
    # A convolution and its tensors are two entries. Three convolutions; an activation after two of them and
    # after the sum; and the sum itself.
    entries = 3 * (2 + activation_entries(spec.act)) + 1
    return numbers, entries + 2 * spec.projects + spec.pools


BOTTLENECK = BlockKind(
    description="1x1, k x k, 1x1, activation after the sum (ResNet)",
    check=_check,
    spec=_spec,
    elastic=ElasticBottleneck,
    plain=Bottleneck,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=None,
)
