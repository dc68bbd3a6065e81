"""The fused inverted bottleneck: k x k convolution that expands, squeeze-and-excitation, 1x1 project.

Source: Fused-MBConv of EfficientNetV2 (Tan and Le, 2021, arXiv:2104.00298), where one ordinary convolution
replaces the 1x1 and the depthwise one: more MACs, but faster on accelerators in early stages. With
expansion 1 a single k x k convolution remains, with its activation and without a projection. The shortcut
is the identity, where the stride is 1 and the widths agree. Smaller kernels are the centre of the largest
(BigNAS, 2020, arXiv:2003.11142).
"""

from collections.abc import Sequence

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
)
from engine.blocks.plain import ConvBN
from engine.blocks.sizes import chain_memory, hidden_width
from engine.blocks.sorting import Channels, sort_hidden, written_by
from engine.blocks.squeeze import (
    ElasticSqueezeExcite,
    SqueezeExcite,
    cost_of_squeeze,
    entries_of_squeeze,
    memory_of_squeeze,
)


class ElasticFused(ElasticBlock):
    """The block in the supernet.

    A block that has a shortcut in every architecture starts as that shortcut: the scale of its last BatchNorm
    is zero (BigNAS).
    """

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        act, eps, inputs = settings.act, settings.bn_eps, position.inputs
        self.stride, self.expands = position.stride, settings.expands != (1,)
        hidden = hidden_width(inputs, settings.expands[-1]) if self.expands else width
        conv = ElasticConv(inputs, hidden, settings.kernels[-1], position.stride, settings.same)
        self.conv = ElasticConvBN(conv, act, eps)
        self.se = None
        if settings.se:
            self.se = ElasticSqueezeExcite(settings.se, inputs, hidden)
        self.project = ElasticConvBN(ElasticConv(hidden, width), None, eps) if self.expands else None
        self.always_residual = not position.changes
        zero_scale(self.last_norm())

    def last_norm(self) -> ElasticBatchNorm | None:
        # All activations are 0 at 0, so that a last layer with an activation starts as the shortcut, too.
        return (self.project or self.conv).bn if self.always_residual else None

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        hidden = self._hidden(x.shape[1], choice)
        y = self.conv(x, hidden, choice.kernel)
        if self.se is not None:
            y = self.se(y, x.shape[1])
        if self.project is not None:
            y = self.project(y, choice.width)
        if self.stride > 1 or x.shape[1] != choice.width:
            return y  # no shortcut here, and so no drop-connect
        y = y if drop is None else drop_connect(y, drop)
        return y + x

    def _hidden(self, inputs: int, choice: BlockChoice) -> int:
        # Without an expansion the k x k convolution is the whole block and writes the block's output.
        return hidden_width(inputs, choice.expand) if self.expands else choice.width

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        hidden = self._hidden(inputs, choice)
        found = prefixed("conv", self.conv.slices(inputs, hidden, choice.kernel))
        if self.se is not None:
            found |= prefixed("se", self.se.slices(inputs, hidden))
        if self.project is not None:
            found |= prefixed("project", self.project.slices(hidden, choice.width))
        return found

    def map_channels(self) -> tuple[Channels, Channels]:
        inputs = Channels([], [self.conv.conv.weight])
        output = Channels(written_by(self.project or self.conv), [])
        if self.project is None and self.se is not None:
            output.writers.extend(self.se.writers())
            output.readers.append(self.se.reduce.weight)
        return inputs, output

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        if self.project is None:
            return  # the only channels are then the block's output, whose order is not its own
        sort_hidden(written_by(self.conv), self.project, self.se, inputs, expands)


class Fused(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.conv = ConvBN(spec.inp, spec.hidden, spec.kernel, spec.stride, spec.act, eps, same=spec.same)
        self.se = SqueezeExcite(spec.se, spec.hidden, spec.squeeze) if spec.se else None
        self.project = ConvBN(spec.hidden, spec.out, 1, 1, None, eps) if spec.expands else None
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.se is not None:
            y = self.se(y)
        if self.project is not None:
            y = self.project(y)
        return y + x if self.residual else y


def _check(settings: BlockSettings) -> Complaint | None:
    if 1 in settings.expands and len(settings.expands) > 1:
        return Complaint("expand", f"mixes 1, which has no projection, with others: {settings.expands}")
    if settings.se and settings.expands == (1,):
        return Complaint("se", "must be false where expand is 1, since there is no projection to scale for")
    if settings.projected:
        return Complaint("block", "is fused, whose shortcuts are identities; take shortcut: identity")
    if settings.transformed and len(settings.kernels) > 1:
        return Complaint(
            "kernel",
            f"must be one kernel unless kernels is crop, since learned matrices are for depthwise "
            f"convolutions: {settings.kernels}",
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    expands = settings.expands != (1,)
    return BlockSpec(
        block="fused",
        size=size,
        inp=position.inputs,
        hidden=hidden_width(position.inputs, choice.expand) if expands else choice.width,
        out=choice.width,
        kernel=choice.kernel,
        stride=position.stride,
        expands=expands,
        se=settings.se,
        act=settings.act,
        residual=position.stride == 1 and position.inputs == choice.width,
        projects=False,
        same=settings.same and position.stride > 1,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    weights = spec.kernel**2 * spec.inp * spec.hidden
    norms = 2 * spec.hidden
    if spec.expands:
        weights += spec.hidden * spec.out
        norms += 2 * spec.out
    macs, params = spec.size_after**2 * weights, weights + norms
    if spec.se:
        more_macs, more_params = cost_of_squeeze(spec.hidden, spec.squeeze)
        macs += more_macs
        params += more_params
    return macs, params


def _memory(spec: BlockSpec) -> int:
    before, after = spec.inp * spec.size**2, spec.size_after**2
    maps = [before, spec.hidden * after]
    if spec.expands:
        maps.append(spec.out * after)
    held = before if spec.residual else 0
    alive = [chain_memory(maps, held)]
    if spec.se:
        alive.append(memory_of_squeeze(after, spec.hidden, spec.squeeze) + held)
    return max(alive)


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that each BatchNorm has.
    numbers = _cost(spec)[1] - spec.hidden
    entries = 2 + activation_entries(spec.act) + entries_of_squeeze(spec.se) + spec.residual
    if spec.expands:
        numbers -= spec.out
        entries += 2
    return numbers, entries


FUSED = BlockKind(
    description="k x k, 1x1 (EfficientNetV2)",
    check=_check,
    spec=_spec,
    elastic=ElasticFused,
    plain=Fused,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=None,
    pads_same=True,
)
