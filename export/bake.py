"""What may stand in the exported file around a network: resize, crop, normalisation and softmax."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from engine.data.augment import resize
from engine.data.dataset import Interpolation

Layout = Literal["NCHW", "NHWC"]


class CenterCrop(NamedTuple):
    """How an image of any size becomes a square, as Pillow does it.

        CenterCrop(224, 256)          shorter side to 256 pixels, then the middle of 224 x 224
        CenterCrop(32)                to 32 x 32 pixels, whatever its shape

    Args:
        side: of the square in pixels.
        shorter: side in pixels to which the shorter side is resized first; none: both become `side`.
        interpolation: of the resize, antialiased.
    """

    side: int
    shorter: int | None = None
    interpolation: Interpolation = "bicubic"

    def facts(self) -> dict[str, Any]:
        """The same as keys of a manifest's `preprocessing`."""
        interpolation = {"resize_interpolation": f"{self.interpolation}, antialiased"}
        if self.shorter is None:
            return {"image_size": self.side} | interpolation
        return {"resize_shorter_side": self.shorter, "center_crop": self.side} | interpolation


class Bake(NamedTuple):
    """What to put into the graph around a network.

        export.to_onnx(net, "net.onnx", images=x, bake=Bake(mean, std, "NHWC", softmax=True))
        export.to_onnx(net, "net.onnx", images=x, bake=Bake(mean, std, crop=CenterCrop(224, 256)))

    The file then takes uint8 pixels and normalises them itself; with `crop` it takes one decoded image of any
    size, (1, height, width, C).

    Args:
        mean, std: one number per channel, of pixels scaled to 0..1.
        layout: of the pixels.
        softmax: whether the output is probabilities instead of logits.
        crop: the resize and crop to put in, too; none: the file takes images of the right size.
    """

    mean: Sequence[float]
    std: Sequence[float]
    layout: Layout = "NHWC"
    softmax: bool = False
    crop: CenterCrop | None = None

    @property
    def step(self) -> str:
        """Where the file takes over, as the manifest says it under `baked`."""
        return "normalize" if self.crop is None else "preprocessing"

    def pixels(self, x_NCHW: Tensor) -> Tensor:
        """The uint8 pixels, in the layout of the file, from which normalised images were made."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        # Rounding matters: an image that was resized after decoding has numbers between two levels.
        x = ((x_NCHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1).contiguous() if self.layout == "NHWC" else x


class PixelClassifier(nn.Module):
    """A classifier of normalised images as one of uint8 pixels.

    Args:
        network: the classifier.
        bake: how its images were made.
        size: side to which images are resized before the network sees them; none: they stay as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, bake: Bake, size: int | None = None):
        super().__init__()
        self.network, self.bake, self.size = network, bake, size
        mean, std = torch.tensor(bake.mean), torch.tensor(bake.std)
        # (pixel / 255 - mean) / std, as one multiplication and one addition.
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])
        # A module is in training mode when it is made; the check before an export would refuse that.
        self.train(network.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, H, W, C) or (N, C, H, W) to logits or probabilities (N, K)."""
        x = pixels.permute(0, 3, 1, 2) if self.bake.layout == "NHWC" else pixels
        x = x.to(torch.float32).contiguous() * self.scale + self.shift
        # The supernet's images are resized to a subnet's side after they were normalised.
        logits = self.network(x if self.size is None else resize(x, self.size))
        return torch.softmax(logits, 1) if self.bake.softmax else logits
