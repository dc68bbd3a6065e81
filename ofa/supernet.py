"""The supernet: a function of (image, architecture), with the weights of the largest network.

There is no `set_active_subnet`: `supernet(x, arch)` runs `arch`, and what it runs depends on nothing else.
The widths, depths, kernels, expansions and the resolution of `arch` select slices and blocks; the network is
the MobileNet-style one of BigNAS (arXiv:2003.11142), AttentiveNAS (arXiv:2011.09011) and OFA, or OFA's
ResNet50-D (arXiv:1908.09791), as the space says.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.blocks.elastic import DropConnect, ElasticLinear, Slices, dropout, prefixed
from engine.blocks.head import ElasticHead, HeadSpec
from engine.blocks.kind import BlockChoice, ElasticBlock
from engine.blocks.stem import StemSpec, elastic_stem
from engine.blocks.table import block_kind
from engine.data.augment import resize
from ofa.cost import cost_of, costs_of
from ofa.layers import layer_specs
from ofa.space.arch import Arch, active_blocks, check_arch, largest
from ofa.space.codes import Codes
from ofa.space.space import Space


class Regularisation(NamedTuple):
    """Dropout and drop-connect, which only the largest network gets.

    Args:
        dropout: rate before the classifier.
        drop_connect: block i of n is dropped with i / n of this rate, so the last one nearly reaches it.
        first_stage: the first stage with drop-connect.
        generator: draws both, on the device of the images.
    """

    dropout: float
    drop_connect: float
    first_stage: int
    generator: torch.Generator

    def drop(self, stage: int, index: int, blocks: int) -> DropConnect | None:
        """Drop-connect of block `index` of `blocks`, which belongs to `stage`; None: it has none."""
        # None where the rate is 0, so that nothing is drawn and multiplied by one.
        if stage < self.first_stage or self.drop_connect == 0 or index == 0:
            return None
        return DropConnect(self.drop_connect * index / blocks, self.generator)


class Supernet(nn.Module):
    """All architectures of `space` in one set of weights.

    Args:
        space: the choices.
        classes: outputs of the classifier.
        channels: input channels.

    Example:
        supernet = Supernet(load_space("digits"), classes=10, channels=1)
        logits_NK = supernet(torch.randn(2, 1, 16, 16), smallest(supernet.space))
    """

    def __init__(self, space: Space, classes: int, channels: int = 3):
        super().__init__()
        self.space, self.classes, self.channels = space, classes, channels
        # Stem and head of the largest architecture have all the weights that any architecture uses.
        stem, *_, head = layer_specs(space, largest(space), classes, channels)
        assert isinstance(stem, StemSpec) and isinstance(head, HeadSpec)
        self.stem = elastic_stem(stem, space.bn_eps)
        self.stages = nn.ModuleList()
        width = space.stem.width[-1]
        for i, stage in enumerate(space.stages):
            kind, settings = block_kind(stage.block), space.block_settings(i)
            blocks = nn.ModuleList()
            for j in range(stage.depth[-1]):
                # A block of the supernet is made for the widest input that it may get.
                blocks.append(kind.elastic(settings, space.block_position(i, j, width), stage.width[-1]))
                width = stage.width[-1]
            self.stages.append(blocks)
        self.head = None
        if space.head:
            self.head = ElasticHead(head, space.head.expand, space.bn_eps)
        self.classifier = ElasticLinear(head.features, classes, bias=True)

    def forward(self, x_NCHW: Tensor, arch: Arch, regularise: Regularisation | None = None) -> Tensor:
        """Logits (N, classes) of `arch`, which resizes the images to its own resolution (bicubic).

        Args:
            x_NCHW: square images (N, channels, side, side), of any side.
            arch: of this space.
            regularise: dropout and drop-connect; None: neither.

        Raises:
            UserError: `arch` is not of this space.
            ValueError: the images are not square, or have other channels.
        """
        # Checked at every call: a slice past the end of a weight is no error in torch, it is a smaller slice.
        check_arch(self.space, arch)
        check_images(x_NCHW, self.channels)
        x = self.stem(resize(x_NCHW, arch.resolution), arch.width[0], *arch.stem)
        count = sum(arch.depth)
        # Shallower stages use their first blocks, as in BigNAS, AttentiveNAS and OFA.
        for index, (stage, block, choice) in enumerate(self._blocks(arch)):
            # The block's number within this architecture counts, not its place in the supernet.
            drop = None if regularise is None else regularise.drop(stage, index, count)
            x = block(x, choice, drop)
        x = x.mean((2, 3)) if self.head is None else self.head(x, arch.width[-1])
        if regularise is not None and regularise.dropout > 0:
            x = dropout(x, regularise.dropout, regularise.generator)
        logits: Tensor = self.classifier(x, self.classes)
        return logits

    def cost(self, arch: Arch) -> tuple[int, int]:
        """(MACs of one image, parameters) of `arch` with this supernet's classes and channels.

        Raises:
            UserError: `arch` is not of this space.
        """
        return cost_of(self.space, arch, self.classes, self.channels)

    def macs(self, codes_NF: Codes) -> NDArray[np.int64]:
        """MACs (N,) of encoded architectures with this supernet's classes and channels."""
        return costs_of(self.space, codes_NF, self.classes, self.channels).macs

    def slices(self, arch: Arch) -> Slices:
        """Every tensor that `arch` uses, as a view of the shared one, under the names of `ofa.subnet.Subnet`.

        Smaller kernels that follow from learned matrices are no views: they are computed.
        """
        width = arch.width[0]
        found = prefixed("stem", self.stem.slices(self.channels, width, *arch.stem))
        # A subnet numbers its blocks through, without the inactive ones.
        for index, (_, block, choice) in enumerate(self._blocks(arch)):
            found |= prefixed(f"blocks.{index}", block.slices(width, choice))
            width = choice.width
        if self.head is not None:
            found |= prefixed("head", self.head.slices(width, arch.width[-1]))
        return found | prefixed("classifier", self.classifier.slices(arch.width[-1], self.classes))

    def block(self, stage: int, number: int) -> ElasticBlock:
        """Block `number` of a stage."""
        # nn.ModuleList gives plain modules; the assertions tell the type checker what they are.
        blocks = self.stages[stage]
        assert isinstance(blocks, nn.ModuleList)
        block = blocks[number]
        assert isinstance(block, ElasticBlock)
        return block

    def _blocks(self, arch: Arch) -> Iterator[tuple[int, ElasticBlock, BlockChoice]]:
        """The active blocks with their stage and what `arch` chooses for them."""
        for stage, number, choice in active_blocks(self.space, arch):
            yield stage, self.block(stage, number), choice


def check_images(x_NCHW: Tensor, channels: int) -> None:
    """Refuse a tensor that is no batch of square images.

    Args:
        x_NCHW: the tensor.
        channels: those that the images must have.

    Raises:
        ValueError: the tensor is none; the sentence names its shape.
    """
    square = x_NCHW.ndim == 4 and x_NCHW.shape[2] == x_NCHW.shape[3]
    if not square or x_NCHW.shape[1] != channels:
        raise ValueError(
            f"Images have shape {tuple(x_NCHW.shape)}, but this supernet takes square ones of {channels} "
            f"channels: (images, {channels}, side, side)."
        )
