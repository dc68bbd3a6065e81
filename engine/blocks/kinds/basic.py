"""ResNet's basic block: k x k with the stride, k x k; activation after the sum with the shortcut.

Source: ResNet-18 and -34 (2015, arXiv:1512.03385). The expansion multiplies the output width; the published
networks have expansion 1. The shortcut is the identity wherever stride and widths allow it, also in a block
whose widths differ in other architectures, since the published first stages have it so. Elsewhere it is that
of `engine.blocks.shortcut`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.blocks.activation import ACTIVATION_LAYERS
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
    shortcut_memory,
)
from engine.blocks.plain import ConvBN
from engine.blocks.shortcut import ElasticShortcut, channels_beside, plain_shortcut
from engine.blocks.sizes import chain_memory, hidden_width
from engine.blocks.sorting import Channels, sort_between
from engine.compute.fast import ACTIVATION


class ElasticBasic(ElasticBlock):
    """The block in the supernet. It starts as its shortcut, since the last BatchNorm's scale is zero."""

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps, (kernel,) = settings.act, settings.bn_eps, settings.kernels
        hidden = hidden_width(width, settings.expands[-1])
        self.stride, self.act = position.stride, ACTIVATION[act]
        self.conv = ElasticConvBN(ElasticConv(position.inputs, hidden, kernel, position.stride), act, eps)
        self.project = ElasticConvBN(ElasticConv(hidden, width, kernel), None, eps)
        # It is there if some architecture needs it, and used by those that do.
        self.shortcut = ElasticShortcut(settings, position, width) if position.changes else None
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm:
        return self.project.bn

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        y = self.project(self.conv(x, hidden_width(choice.width, choice.expand)), choice.width)
        # As in every kind, drop-connect is only for identity shortcuts.
        if self.shortcut is not None and _projects(self.stride, x.shape[1], choice.width):
            x = self.shortcut(x, choice.width)
        elif drop is not None:
            y = drop_connect(y, drop)
        return self.act(y + x)

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        hidden = hidden_width(choice.width, choice.expand)
        found = prefixed("conv", self.conv.slices(inputs, hidden))
        found |= prefixed("project", self.project.slices(hidden, choice.width))
        if self.shortcut is not None and _projects(self.stride, inputs, choice.width):
            found |= prefixed("shortcut", self.shortcut.slices(inputs, choice.width))
        return found

    def map_channels(self) -> tuple[Channels, Channels]:
        return channels_beside(self.conv, self.project, self.shortcut)

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        cuts = {hidden_width(width, expand) for width in outputs for expand in expands}
        sort_between(self.conv, self.project, cuts)


class Basic(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.conv = ConvBN(spec.inp, spec.hidden, spec.kernel, spec.stride, spec.act, eps)
        self.project = ConvBN(spec.hidden, spec.out, spec.kernel, 1, None, eps)
        self.shortcut = plain_shortcut(spec, eps) if spec.projects else None
        self.act = ACTIVATION_LAYERS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv(x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.act(y + x)


def _projects(stride: int, inputs: int, width: int) -> bool:
    """Whether the shortcut of a block cannot be the identity."""
    return stride > 1 or inputs != width


def _check(settings: BlockSettings) -> Complaint | None:
    if len(settings.kernels) > 1:
        return Complaint("kernel", f"must be one kernel, since basic blocks take no more: {settings.kernels}")
    if settings.se:
        return Complaint("se", "must be false, since basic blocks have no squeeze-and-excitation")
    if settings.projected:
        return Complaint(
            "block", "is basic, whose shortcuts are convolutions where they must be; take shortcut: identity"
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    return BlockSpec(
        block="basic",
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
        projects=_projects(position.stride, position.inputs, choice.width),
        strided=position.stride > 1 and not settings.pooled,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    weights = spec.kernel**2 * spec.hidden * (spec.inp + spec.out)
    norms = 2 * spec.hidden + 2 * spec.out
    if spec.projects:
        weights += spec.inp * spec.out
        norms += 2 * spec.out
    # The first convolution has the stride, so all of them write maps of the same side.
    return spec.size_after**2 * weights, weights + norms


def _memory(spec: BlockSpec) -> int:
    before, after = spec.inp * spec.size**2, spec.size_after**2
    maps = [before, spec.hidden * after, spec.out * after]
    # The input is held to the end: every basic block has a shortcut.
    return max(chain_memory(maps, held=before), shortcut_memory(spec))


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - spec.hidden - spec.out - spec.projects * spec.out
    # A convolution and its tensors are two entries. Two convolutions; an activation after the first and after
    # the sum; and the sum itself.
    entries = 2 * (2 + activation_entries(spec.act)) + 1
    return numbers, entries + 2 * spec.projects + spec.pools


BASIC = BlockKind(
    description="k x k, k x k, activation after the sum (ResNet-18)",
    check=_check,
    spec=_spec,
    elastic=ElasticBasic,
    plain=Basic,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=None,
    own_fields=("pooled",),
)
