"""Plain layers that subnets are made of: nothing here knows about sharing weights."""

from torch import nn

from ofa.blocks.activation import ACTIVATION_LAYERS


class ConvBN(nn.Sequential):
    """Convolution without bias, BatchNorm, activation (none if `act` is None).

    pads: zeros before and after each axis of the map; None: kernel // 2.
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
        pads: tuple[int, int] | None = None,
    ):
        super().__init__()
        before, after = pads or (kernel // 2, kernel // 2)
        if before != after:
            # torch's convolution pads both sides alike. In an exported file this layer is part of the
            # convolution after it.
            self.pad = nn.ZeroPad2d((before, after, before, after))
            before = 0
        # No bias: BatchNorm subtracts it again. The names are those of `ofa.blocks.elastic.ElasticConvBN`.
        self.conv = nn.Conv2d(inp, out, kernel, stride, before, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=eps)
        if act:
            self.act = ACTIVATION_LAYERS[act]()
