"""Order the channels between two layers by importance, without changing what the layers compute together."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from engine.blocks.elastic import ElasticBatchNorm, ElasticConvBN
from engine.blocks.sizes import hidden_width
from engine.blocks.squeeze import ElasticSqueezeExcite


class Channels(NamedTuple):
    """The tensors that hold the channels of one map: all of them change if the map's channels change places.

    Args:
        writers: those whose axis 0 are the channels.
        readers: those whose axis 1 are the channels.
    """

    writers: list[Tensor]
    readers: list[Tensor]

    def joined(self, other: "Channels") -> "Channels":
        """The same for two maps whose channels must keep the same order, since one is added to the other."""
        return Channels(self.writers + other.writers, self.readers + other.readers)

    def importance(self) -> Tensor:
        """How much the readers make of each channel."""
        return torch.stack([_read_norm(reader) for reader in self.readers]).sum(0)


def _read_norm(weight: Tensor) -> Tensor:
    """The L1 norm (I,) of what a layer with this weight (O, I, ...) reads from each channel."""
    return weight.abs().transpose(0, 1).flatten(1).sum(1)


def sort_between(layer: ElasticConvBN, reader: ElasticConvBN, cuts: set[int]) -> None:
    """Sort the channels that `layer` writes and `reader` reads; nothing else touches them.

    Args:
        layer: writes the channels.
        reader: reads them; the L1 norm of what it reads from a channel is that channel's importance.
        cuts: numbers of channels that trained architectures use. A channel only moves between two cuts. Each
            trained architecture uses all channels between two cuts or none of them, so it computes the same
            as before.
    """
    order = importance_order(reader.conv.weight, cuts)
    permute(order, written_by(layer), [reader.conv.weight])


def sort_hidden(
    writers: list[Tensor],
    project: ElasticConvBN,
    se: ElasticSqueezeExcite | None,
    inputs: Sequence[int],
    expands: Sequence[float],
) -> None:
    """Sort the hidden channels of an inverted bottleneck, by what its projection makes of them.

    Args:
        writers: the tensors that write them, without those of `se`.
        project: reads them.
        se: reads and scales the same channels, so it is reordered with them; None: there is none.
        inputs, expands: choices of the block's input width and expansion in trained architectures.
    """
    choices = [(width, hidden_width(width, expand)) for width, expand in product(inputs, expands)]
    order = importance_order(project.conv.weight, {hidden for _, hidden in choices})
    readers: list[Tensor] = [project.conv.weight]
    if se is not None:
        sort_inside(se, {se.settings.width(*choice) for choice in choices})
        writers = writers + se.writers()
        readers.append(se.reduce.weight)
    permute(order, writers, readers)


def sort_inside(se: ElasticSqueezeExcite, cuts: set[int]) -> None:
    """Sort the inner channels of squeeze-and-excitation.

    Args:
        se: the layer.
        cuts: numbers of its inner channels that trained architectures use.
    """
    assert se.reduce.bias is not None
    order = importance_order(se.restore.weight, cuts)
    permute(order, [se.reduce.weight, se.reduce.bias], [se.restore.weight])


def written_by(layer: ElasticConvBN) -> list[Tensor]:
    """Every tensor of `layer` whose axis 0 is its output channels."""
    bn = layer.bn
    assert isinstance(bn, ElasticBatchNorm)
    return [layer.conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var]


def importance_order(following: Tensor, cuts: set[int]) -> Tensor:
    """The new order of the input channels of a layer, the most important first between one cut and the next.

    Args:
        following: the weight (O, I, k, k) of the layer that reads the channels.
        cuts: as in `sort_between`.

    Returns:
        (I,) the old place of the channel at each new place.
    """
    # Importance as in OFA: how much the next layer makes of a channel.
    importance = _read_norm(following)
    edges = sorted({0, len(importance), *cuts})
    # Stable: channels of equal importance keep their order, so that sorting twice is sorting once.
    groups = [a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise(edges)]
    return torch.cat(groups)


def permute(order: Tensor, writers: list[Tensor], readers: list[Tensor]) -> None:
    """Reorder channels in place: along axis 0 of the tensors that write them, axis 1 of those that read."""
    for axis, tensors in ((0, writers), (1, readers)):
        for tensor in tensors:
            tensor.copy_(tensor.index_select(axis, order))
