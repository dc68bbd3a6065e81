"""Order the channels between blocks by importance, so that narrower stages keep the best.

`ofa.training.phases.sort_channels` orders the channels inside of blocks. Those between blocks are shared by
a whole stage, whose shortcuts add one map to the next: they get one order, which all layers follow that write
or read them.
"""

import torch
from torch import Tensor

from engine.blocks.elastic import ElasticConvBN
from engine.blocks.sorting import Channels, permute, written_by
from engine.blocks.stem import ElasticDeepStem
from ofa.supernet import Supernet


@torch.no_grad()
def sort_widths(supernet: Supernet, classifier_KF: Tensor) -> None:
    """Order the channels of the stem, of every stage and of the head by importance, in place.

    The largest architecture computes the same as before.

    Args:
        supernet: with the weights of a network.
        classifier_KF: the trained weight of the network's classifier, by which the last channels are ordered;
            that of the supernet may be new.
    """
    *maps, features = _maps(supernet)
    for channels in maps:
        _sort(channels, channels.importance())
    importance = torch.zeros(supernet.classifier.weight.shape[1])
    importance[: classifier_KF.shape[1]] = classifier_KF.abs().sum(0)
    if features.readers:  # without a head these are also the channels of the last stage
        importance += features.importance()
    features.readers.append(supernet.classifier.weight)
    _sort(features, importance)


def _sort(channels: Channels, importance: Tensor) -> None:
    # Stable: channels that nothing reads come last and keep their order.
    order = importance.argsort(descending=True, stable=True)
    permute(order, channels.writers, channels.readers)


def _maps(supernet: Supernet) -> list[Channels]:
    """The channels of each map that has an order of its own, from the stem's to the classifier's input."""
    stem = supernet.stem.last if isinstance(supernet.stem, ElasticDeepStem) else supernet.stem
    maps = [Channels(written_by(stem), [])]
    for i, stage in enumerate(supernet.space.stages):
        for j in range(stage.depth[-1]):
            inputs, output = supernet.block(i, j).map_channels()
            maps[-1] = maps[-1].joined(inputs)
            # A shortcut adds the block's input, which may be pooled, to its output channel by channel.
            if j > 0 or supernet.space.widths_before(i)[-1] == stage.width[-1]:
                maps[-1] = maps[-1].joined(output)
            else:
                maps.append(output)
    head = supernet.head
    if head is None:
        return maps
    maps[-1].readers.append(head.conv.conv.weight)
    maps.append(Channels(written_by(head.conv), []))
    if head.mix is None:
        return maps
    # A linear layer after the pool, or a convolution with BatchNorm on the pooled map.
    if isinstance(head.mix, ElasticConvBN):
        weight, written = head.mix.conv.weight, written_by(head.mix)
    else:
        weight, written = head.mix.weight, [head.mix.weight]
        if head.mix.bias is not None:
            written.append(head.mix.bias)
    maps[-1].readers.append(weight)
    return [*maps, Channels(written, [])]
