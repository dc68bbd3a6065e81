"""What a kind of block is: the functions and modules that every kind must bring, and the data they exchange.

A kind is one file in `kinds`: its elastic module in the supernet, its plain module in a subnet, its
layer spec, its cost, memory and stored numbers, which of its channels sort together, and its names in other
projects' tables. `engine.blocks.table` lists the kinds. Nothing in this folder knows `Space`, so that a space
can ask its kinds whether its choices are possible.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from engine.blocks.elastic import (
    DropConnect,
    ElasticBatchNorm,
    ElasticDepthwise,
    Slices,
    TransformedDepthwise,
)
from engine.blocks.sizes import halve
from engine.blocks.sorting import Channels
from engine.blocks.squeeze import Squeeze


class BlockSettings(NamedTuple):
    """What a space says of the blocks of one stage, whichever architecture runs.

    Args:
        kernels, expands: the choices, ascending.
        se: the blocks' squeeze-and-excitation; None: they have none.
        act: name of their activation.
        bn_eps: epsilon of BatchNorm.
        projected: whether every block has a shortcut, through a 1x1 convolution where widths differ.
        transformed: whether smaller kernels follow from larger ones by learned matrices.
        pooled: whether a shortcut's stride is an average pool, or else its 1x1 convolution's.
        same: whether convolutions pad as TensorFlow's 'same' does.
        stride: of the stage's first block.
        start: kernel of the depthwise convolution before the expansion, 0 for none; one entry per block if
            the kind varies within a stage, else empty.
        middle: whether there is a depthwise convolution after the expansion; entries as in `start`.
        group: channels in each group of the k x k convolution; None: there is one group.
    """

    kernels: tuple[int, ...]
    expands: tuple[float, ...]
    se: Squeeze | None
    act: str
    bn_eps: float
    projected: bool
    transformed: bool
    pooled: bool = True
    same: bool = False
    stride: int = 1
    start: tuple[int, ...] = ()
    middle: tuple[bool, ...] = ()
    group: int | None = None


class BlockPosition(NamedTuple):
    """Where a block stands in the network.

    Args:
        inputs: its input channels; in the supernet the widest choice.
        stride: its stride.
        changes: whether its shortcut cannot be the identity in every architecture (`Space.changes_width`).
        number: its number within the stage, from 0.
    """

    inputs: int
    stride: int
    changes: bool
    number: int = 0


class BlockChoice(NamedTuple):
    """What an architecture chooses for one block."""

    width: int
    kernel: int
    expand: float


class BlockSpec(NamedTuple):
    """One block on a `size` x `size` map of `inp` channels, described by what it computes.

    Args:
        block: name of the kind.
        size: side of the input map.
        inp, hidden, out: channels of the input, inside the block, and of the output.
        kernel, stride: of the k x k convolution; kernel is 0 where a universal block has none.
        expands: whether the kind's expansion layers are there.
        se: its squeeze-and-excitation; None: it has none.
        act: name of the activation.
        residual: whether the input is added to the output.
        projects: whether the added input goes through a 1x1 convolution.
        strided: whether that convolution has the block's stride; else an average pool has it.
        same: whether the strided convolution pads as TensorFlow's 'same' does; False at stride 1, where that
            makes no difference.
        start: kernel of a universal block's depthwise convolution before the expansion; 0: none.
        groups: of a bottleneck's k x k convolution, or of an inverted block's two 1x1 convolutions.
    """

    block: str
    size: int
    inp: int
    hidden: int
    out: int
    kernel: int
    stride: int
    expands: bool
    se: Squeeze | None
    act: str
    residual: bool
    projects: bool
    strided: bool = False
    same: bool = False
    start: int = 0
    groups: int = 1

    @property
    def size_after(self) -> int:
        """Side of the output map."""
        return halve(self.size, self.stride)

    @property
    def squeeze(self) -> int:
        """Channels inside squeeze-and-excitation; 0 without it."""
        return self.se.width(self.inp, self.hidden) if self.se else 0

    @property
    def pools(self) -> bool:
        """Whether the shortcut has an average pool."""
        return self.residual and self.stride > 1 and not self.strided


# A base class rather than a protocol: the supernet takes blocks out of nn.ModuleList, where only a class
# tells that a module is a block.
class ElasticBlock(nn.Module):
    """A block of the supernet, with the weights of its largest choice."""

    def forward(self, x: Tensor, choice: BlockChoice, drop: DropConnect | None) -> Tensor:
        """The map after the block.

        Args:
            x: the map before it (N, C, H, W), which may be narrower than the widest choice.
            choice: what the architecture chooses for this block.
            drop: drop-connect of the residual branch in training; None: none.

        Returns:
            (N, choice.width, H / stride, W / stride), sizes rounded up.
        """
        raise NotImplementedError

    def last_norm(self) -> ElasticBatchNorm | None:
        """The BatchNorm whose scale of zero turns the block into its shortcut.

        None if some architecture has no shortcut here: a branch of zeros would be a network of zeros there.
        """
        raise NotImplementedError

    def slices(self, inputs: int, choice: BlockChoice) -> Slices:
        """The tensors that `choice` uses on `inputs` channels, under the names of the plain module."""
        raise NotImplementedError

    def map_channels(self) -> tuple[Channels, Channels]:
        """The tensors that hold the channels of the block's input, and those that hold its output's."""
        raise NotImplementedError

    def sort_channels(self, inputs: Sequence[int], outputs: Sequence[int], expands: Sequence[float]) -> None:
        """Order the hidden channels by importance, so that narrower choices keep the best.

        Architectures that use only the given choices compute the same as before.

        Args:
            inputs: choices of the block's input width.
            outputs: choices of its output width.
            expands: choices of its expansion.
        """
        raise NotImplementedError


class Complaint(NamedTuple):
    """Why a stage's settings are impossible: the field of the stage, and the end of a sentence about it."""

    field: str
    sentence: str


class BlockKind(NamedTuple):
    """Everything about one kind of block."""

    # One line for people.
    description: str
    # What is wrong with a stage's settings; None if nothing is.
    check: Callable[[BlockSettings], Complaint | None]
    # The layer spec of a block, from (settings, position, side of the input map, choice).
    spec: Callable[[BlockSettings, BlockPosition, int, BlockChoice], BlockSpec]
    # The supernet's module, from (settings, position, widest output).
    elastic: Callable[[BlockSettings, BlockPosition, int], ElasticBlock]
    # The subnet's module, from (spec, epsilon of BatchNorm). Latency kits time the same module.
    plain: Callable[[BlockSpec, float], nn.Module]
    # MACs and parameters.
    cost: Callable[[BlockSpec], tuple[int, int]]
    # The most float32 numbers alive at once, the block's input included.
    memory: Callable[[BlockSpec], int]
    # Numbers stored in an exported ONNX file, where BatchNorm is folded, and entries of its graph.
    stored: Callable[[BlockSpec], tuple[int, int]]
    # Kernel and expansion in a few letters, for drawings.
    describe: Callable[[int, float], str]
    # The block's name in the latency tables of OFA and ProxylessNAS; None if they know no such block.
    published_key: Callable[[BlockSpec], str] | None
    # Whether `padding: same` of a space is possible for it.
    pads_same: bool = False
    # Which of `pooled` and `group_width` its stages may have.
    own_fields: tuple[str, ...] = ()
    # Whether each block of a stage is described by itself, in the stage's fields `start` and `middle`.
    varies: bool = False


def elastic_depthwise(settings: BlockSettings, width: int, stride: int) -> ElasticDepthwise:
    """The depthwise convolution of a block whose kernel is elastic; `width`: its channels."""
    if settings.transformed and len(settings.kernels) > 1:
        return TransformedDepthwise(width, settings.kernels, stride, settings.same)
    return ElasticDepthwise(width, settings.kernels[-1], stride, settings.same)


def activation_entries(act: str) -> int:
    """Nodes of an activation in an ONNX graph: swish is a sigmoid and a product, the others are one node."""
    return 2 if act == "swish" else 1


def shortcut_memory(spec: BlockSpec) -> int:
    """The most numbers alive while the shortcut runs, after the residual branch; 0 if it runs no layer."""
    before, after = spec.inp * spec.size**2, spec.inp * spec.size_after**2
    out = spec.out * spec.size_after**2
    alive = 0
    if spec.pools:
        alive = out + before + after  # the pool reads the block's input and writes a smaller map
    if spec.projects:
        source = after if spec.pools else before
        alive = max(alive, out + source + out)  # the 1x1 convolution writes what is added to the output
    return alive


def describe_kernel_and_expansion(kernel: int, expand: float) -> str:
    """`5×5 e4`; the expansion is left out where it is 1."""
    return f"{kernel}×{kernel}" + ("" if expand == 1 else f" e{expand:.3g}")
