"""Plain layers that subnets are made of: nothing here knows about sharing weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from engine.blocks.activation import ACTIVATION_LAYERS
from engine.blocks.sizes import same_padding


def padded_as_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """A map with the zeros of TensorFlow's 'same' padding around it.

    Args:
        x: the map (N, C, H, W).
        kernel, stride: of the convolution that follows, which pads its input no more.
    """
    top, bottom = same_padding(x.shape[-2], kernel, stride)
    left, right = same_padding(x.shape[-1], kernel, stride)
    return F.pad(x, (left, right, top, bottom))


class SamePad(nn.Module):
    """Zeros as `padded_as_same` puts them.

    How many there are depends on the map and not on the side for which the network was made, so that a
    backbone is right at every size. In an exported file they are part of the convolution that follows.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return padded_as_same(x, self.kernel, self.stride)


class ChannelShuffle(nn.Module):
    """Channel c of group g becomes channel g of group c, so that the next groups read from all of these."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.sizes = (groups, channels // groups)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        apart = x.reshape(count, *self.sizes, height, width)
        return apart.transpose(1, 2).reshape(count, channels, height, width)


class ConvBN(nn.Sequential):
    """Convolution without bias, BatchNorm, activation (none if `act` is None).

    same: whether it pads as TensorFlow does; else by kernel // 2 on every side.
    """

    def __init__(
        self,
        inp: int,
        out: int,
        kernel: int,
        stride: int,
        act: str | None,
        eps: float,
        groups: int = 1,
        same: bool = False,
    ):
        super().__init__()
        if same:
            self.pad = SamePad(kernel, stride)
        padding = 0 if same else kernel // 2
        # No bias: BatchNorm subtracts it again. The names are those of `engine.blocks.elastic.ElasticConvBN`.
        self.conv = nn.Conv2d(inp, out, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=eps)
        if act:
            self.act = ACTIVATION_LAYERS[act]()
