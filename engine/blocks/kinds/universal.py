"""The universal inverted bottleneck: optional depthwise, 1x1 expand, optional depthwise, 1x1 project.

Source: MobileNetV4 (2024, arXiv:2404.10518). Which of the two depthwise convolutions a block has makes it one
of four: both (ExtraDW), the middle one (the inverted bottleneck), the one at the start (as in ConvNeXt), or
none (the feed-forward network of a transformer). A space describes each block by itself: `start` is the
kernel of the first convolution, the same in all architectures, and `middle` says whether the second one is
there, whose kernel is elastic. A block without it has no kernel to choose (`Space.kernels_of`).

The middle convolution has the stride; the one at the start has it only where there is no other. The shortcut
is the identity, where the stride is 1 and the widths agree.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.blocks.elastic import (
    DropConnect,
    ElasticBatchNorm,
    ElasticConv,
    ElasticConvBN,
    ElasticDepthwise,
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
)
from engine.blocks.plain import ConvBN
from engine.blocks.sizes import chain_memory, hidden_width
from engine.blocks.sorting import Channels, sort_hidden, written_by


class ElasticUniversal(ElasticBlock):
    """The block in the supernet.

    A block that has a shortcut in every architecture starts as that shortcut: the scale of its last BatchNorm
    is zero (BigNAS).
    """

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps, inputs = settings.act, settings.bn_eps, position.inputs
        start, has_middle = settings.start[position.number], settings.middle[position.number]
        hidden = hidden_width(inputs, settings.expands[-1])
        self.stride = position.stride
        self.start = None
        if start:
            depthwise = ElasticDepthwise(inputs, start, 1 if has_middle else self.stride, settings.same)
            self.start = ElasticConvBN(depthwise, None, eps)
        self.expand = ElasticConvBN(ElasticConv(inputs, hidden), act, eps)
        self.middle = None
        if has_middle:
            self.middle = ElasticConvBN(elastic_depthwise(settings, hidden, self.stride), act, eps)
        self.project = ElasticConvBN(ElasticConv(hidden, width), None, eps)
        self.always_residual = not position.changes
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm | None:
        return self.project.bn if self.always_residual else None

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        inputs = x.shape[1]
        hidden = hidden_width(inputs, choice.expand)
        y = x if self.start is None else self.start(x, inputs)
        y = self.expand(y, hidden)
        if self.middle is not None:
            y = self.middle(y, hidden, choice.kernel)
        y = self.project(y, choice.width)
        if self.stride > 1 or inputs != choice.width:
            return y  # no shortcut here, and so no drop-connect
        y = y if drop is None else drop_connect(y, drop)
        return y + x

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        hidden = hidden_width(inputs, choice.expand)
        found: Slices = {}
        if self.start is not None:
            found |= prefixed("start", self.start.slices(inputs, inputs))
        found |= prefixed("expand", self.expand.slices(inputs, hidden))
        if self.middle is not None:
            found |= prefixed("middle", self.middle.slices(hidden, hidden, choice.kernel))
        return found | prefixed("project", self.project.slices(hidden, choice.width))

    def map_channels(self) -> tuple[Channels, Channels]:
        at_input = [] if self.start is None else written_by(self.start)
        inputs = Channels(at_input, [self.expand.conv.weight])
        return inputs, Channels(written_by(self.project), [])

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        writers = written_by(self.expand)
        # A depthwise convolution has no input axis: what it writes for a channel belongs to that channel. The
        # one at the start works on the block's input, whose order is not its own.
        if self.middle is not None:
            writers += written_by(self.middle)
        sort_hidden(writers, self.project, None, inputs, expands)


class Universal(nn.Module):
    """The block as plain layers, in the order of timm's, so that weights can be loaded in order."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        inp, hidden, act = spec.inp, spec.hidden, spec.act
        self.start = None
        if spec.start:
            # The stride, and with it the padding of TensorFlow, is the middle convolution's if there is one.
            stride, same = (1, False) if spec.kernel else (spec.stride, spec.same)
            self.start = ConvBN(inp, inp, spec.start, stride, None, eps, groups=inp, same=same)
        self.expand = ConvBN(inp, hidden, 1, 1, act, eps)
        self.middle = None
        if spec.kernel:
            self.middle = ConvBN(
                hidden, hidden, spec.kernel, spec.stride, act, eps, groups=hidden, same=spec.same
            )
        self.project = ConvBN(hidden, spec.out, 1, 1, None, eps)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.start is None else self.start(x)
        y = self.expand(y)
        if self.middle is not None:
            y = self.middle(y)
        y = self.project(y)
        return y + x if self.residual else y


def _check(settings: BlockSettings) -> Complaint | None:
    if settings.se:
        return Complaint("se", "must be false in a universal block")
    if settings.projected:
        return Complaint("block", "is universal, whose shortcuts are identities; take shortcut: identity")
    if settings.stride > 1 and not settings.start[0] and not settings.middle[0]:
        return Complaint(
            "stride",
            f"is {settings.stride}, but the first block has no depthwise convolution that could have it; "
            f"give it one in start or middle",
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    return BlockSpec(
        block="universal",
        size=size,
        inp=position.inputs,
        hidden=hidden_width(position.inputs, choice.expand),
        out=choice.width,
        kernel=choice.kernel if settings.middle[position.number] else 0,
        stride=position.stride,
        expands=True,
        se=None,
        act=settings.act,
        residual=position.stride == 1 and position.inputs == choice.width,
        projects=False,
        same=settings.same and position.stride > 1,
        start=settings.start[position.number],
    )


def _inner_size(spec: BlockSpec) -> int:
    """Side of the map between the convolutions at the start and in the middle."""
    # The stride is of the middle convolution, if there is one.
    return spec.size if spec.kernel else spec.size_after


def _cost(spec: BlockSpec) -> tuple[int, int]:
    # A kernel of 0 stands for a convolution that is not there, and adds nothing here.
    inner_weights = spec.start**2 * spec.inp + spec.inp * spec.hidden
    outer_weights = spec.kernel**2 * spec.hidden + spec.hidden * spec.out
    macs = _inner_size(spec) ** 2 * inner_weights + spec.size_after**2 * outer_weights
    return macs, inner_weights + outer_weights + 2 * _norm_channels(spec)


def _norm_channels(spec: BlockSpec) -> int:
    """Channels of all BatchNorms together."""
    channels = spec.hidden + spec.out
    if spec.start:
        channels += spec.inp
    if spec.kernel:
        channels += spec.hidden
    return channels


def _memory(spec: BlockSpec) -> int:
    before, inner, after = spec.size**2, _inner_size(spec) ** 2, spec.size_after**2
    maps = [spec.inp * before]
    if spec.start:
        maps.append(spec.inp * inner)
    maps.append(spec.hidden * inner)
    if spec.kernel:
        maps.append(spec.hidden * after)
    maps.append(spec.out * after)
    return chain_memory(maps, spec.inp * before if spec.residual else 0)


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - _norm_channels(spec)
    active = 2 + activation_entries(spec.act)  # of a convolution; the start and the end have no activation
    entries = active + 2 + spec.residual
    if spec.start:
        entries += 2
    if spec.kernel:
        entries += active
    return numbers, entries


def _describe(kernel: int, expand: float) -> str:
    return describe_kernel_and_expansion(kernel, expand) if kernel else f"e{expand:.3g}"


UNIVERSAL = BlockKind(
    description="depthwise or none, 1x1, depthwise or none, 1x1 (MobileNetV4)",
    check=_check,
    spec=_spec,
    elastic=ElasticUniversal,
    plain=Universal,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=_describe,
    published_key=None,
    pads_same=True,
    varies=True,
)
