"""Normalisation and softmax inside the exported file: pixels in, probabilities out."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC"]


class Bake(NamedTuple):
    """What to put into the graph around a network.

        export.to_onnx(net, "net.onnx", images=x, bake=Bake(mean, std, "NHWC", softmax=True))

    The file then takes uint8 pixels and normalises them itself.

    Args:
        mean, std: one number per channel, of pixels scaled to 0..1.
        layout: of the pixels.
        softmax: whether the output is probabilities instead of logits.
    """

    mean: Sequence[float]
    std: Sequence[float]
    layout: Layout = "NHWC"
    softmax: bool = False

    def pixels(self, x_NCHW: Tensor) -> Tensor:
        """The uint8 pixels, in the layout of the file, from which normalised images were made."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        # Rounding matters: an image that was resized after decoding has numbers between two levels.
        x = ((x_NCHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1).contiguous() if self.layout == "NHWC" else x


class PixelClassifier(nn.Module):
    """A classifier of normalised images as one of uint8 pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, bake: Bake):
        super().__init__()
        self.network, self.bake = network, bake
        mean, std = torch.tensor(bake.mean), torch.tensor(bake.std)
        # (pixel / 255 - mean) / std, as one multiplication and one addition.
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])
        # A module is in training mode when it is made; the check before an export would refuse that.
        self.train(network.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, H, W, C) or (N, C, H, W) to logits or probabilities (N, K)."""
        x = pixels.permute(0, 3, 1, 2) if self.bake.layout == "NHWC" else pixels
        logits = self.network(x.to(torch.float32).contiguous() * self.scale + self.shift)
        return torch.softmax(logits, 1) if self.bake.softmax else logits
