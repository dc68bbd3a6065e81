"""ResNet's shortcut where it cannot be the identity: a 1x1 convolution and BatchNorm, elastic and plain.

A stride is the convolution's own (ResNet, 2015, arXiv:1512.03385), or that of an average pool before it
(ResNet-D, 2018, arXiv:1812.01187).
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from engine.blocks.elastic import ElasticConv, ElasticConvBN
from engine.blocks.kind import BlockPosition, BlockSettings, BlockSpec
from engine.blocks.plain import ConvBN
from engine.blocks.sorting import Channels, written_by


class ElasticShortcut(ElasticConvBN):
    """The shortcut in the supernet."""

    def __init__(self, settings: BlockSettings, position: BlockPosition, width: int):
        strides = (position.stride, 1) if settings.pooled else (1, position.stride)
        self.pool_stride, stride = strides
        conv = ElasticConv(position.inputs, width, 1, stride)
        super().__init__(conv, None, settings.bn_eps)

    def forward(self, x: Tensor, out: int, kernel: int | None = None) -> Tensor:
        if self.pool_stride > 1:
            x = F.avg_pool2d(x, self.pool_stride, ceil_mode=True)
        return super().forward(x, out, kernel)


def channels_beside(
    first: ElasticConvBN, project: ElasticConvBN, shortcut: ElasticShortcut | None
) -> tuple[Channels, Channels]:
    """The input and output channels of a block whose branch goes from `first` to `project`."""
    inputs = Channels([], [first.conv.weight])
    output = Channels(written_by(project), [])
    if shortcut is not None:
        inputs.readers.append(shortcut.conv.weight)
        output.writers.extend(written_by(shortcut))
    return inputs, output


def plain_shortcut(spec: BlockSpec, eps: float) -> nn.Sequential:
    """The shortcut of a block that projects, as plain layers. eps: epsilon of BatchNorm."""
    layers = ConvBN(spec.inp, spec.out, 1, spec.stride if spec.strided else 1, None, eps)
    if not spec.pools:
        return layers
    # Beside the convolution and not around it, so that its tensors have the same names with and without pool.
    pool = nn.AvgPool2d(spec.stride, ceil_mode=True)
    return nn.Sequential(OrderedDict(pool=pool, conv=layers.conv, bn=layers.bn))
