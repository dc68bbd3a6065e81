"""One convolution, BatchNorm and activation, without a shortcut.

MobileNetV4 (2024, arXiv:2404.10518) starts with such blocks, of 3 x 3 and of 1 x 1. Smaller kernels are the
centre of the largest (BigNAS, 2020, arXiv:2003.11142).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.blocks.elastic import DropConnect, ElasticConv, ElasticConvBN, Slices, prefixed
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
from engine.blocks.sizes import chain_memory
from engine.blocks.sorting import Channels, written_by


class ElasticPlainConv(ElasticBlock):
    """The block in the supernet."""

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        super().__init__()
        conv = ElasticConv(position.inputs, width, settings.kernels[-1], position.stride, settings.same)
        self.conv = ElasticConvBN(conv, settings.act, settings.bn_eps)

    def last_norm(self) -> None:
        """None: the block never has a shortcut."""

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        # Drop-connect needs a shortcut that an image can take instead.
        return self.conv(x, choice.width, choice.kernel)

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        return prefixed("conv", self.conv.slices(inputs, choice.width, choice.kernel))

    def map_channels(self) -> tuple[Channels, Channels]:
        return Channels([], [self.conv.conv.weight]), Channels(written_by(self.conv), [])

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        """Nothing: the only channels are the block's output, whose order is not its own."""


class PlainConv(nn.Module):
    """The block as plain layers."""

    def __init__(self, spec: BlockSpec, eps: float):
        super().__init__()
        self.conv = ConvBN(spec.inp, spec.out, spec.kernel, spec.stride, spec.act, eps, same=spec.same)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _check(settings: BlockSettings) -> Complaint | None:
    if settings.expands != (1,):
        return Complaint("expand", f"must be [1] in a conv block, which has no expansion: {settings.expands}")
    if settings.se:
        return Complaint("se", "must be false in a conv block")
    if settings.projected:
        return Complaint("block", "is conv, which has no shortcut; take shortcut: identity")
    if settings.transformed and len(settings.kernels) > 1:
        return Complaint(
            "kernel",
            f"must be one kernel unless kernels is crop, since learned matrices are for depthwise "
            f"convolutions: {settings.kernels}",
        )
    return None


def _spec(settings: BlockSettings, position: BlockPosition, size: int, choice: BlockChoice) -> BlockSpec:
    return BlockSpec(
        block="conv",
        size=size,
        inp=position.inputs,
        hidden=choice.width,
        out=choice.width,
        kernel=choice.kernel,
        stride=position.stride,
        expands=False,
        se=None,
        act=settings.act,
        residual=False,
        projects=False,
        same=settings.same and position.stride > 1,
    )


def _cost(spec: BlockSpec) -> tuple[int, int]:
    weights = spec.kernel**2 * spec.inp * spec.out
    return spec.size_after**2 * weights, weights + 2 * spec.out  # with scale and shift of BatchNorm


def _memory(spec: BlockSpec) -> int:
    return chain_memory([spec.inp * spec.size**2, spec.out * spec.size_after**2])


def _stored(spec: BlockSpec) -> tuple[int, int]:
    # Folding leaves one bias per channel of the two numbers that BatchNorm has.
    return _cost(spec)[1] - spec.out, 2 + activation_entries(spec.act)


CONV = BlockKind(
    description="k x k convolution, no shortcut",
    check=_check,
    spec=_spec,
    elastic=ElasticPlainConv,
    plain=PlainConv,
    cost=_cost,
    memory=_memory,
    stored=_stored,
    describe=describe_kernel_and_expansion,
    published_key=None,
    pads_same=True,
)
