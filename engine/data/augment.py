"""Augmentation of whole batches on the device, every image with its own draw.

torchvision's RandomCrop on a batch gives every image the same crop; these do not, and cost a few kernels per
batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(x_NCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image padded by `padding` zeros on every side and cropped back to its size at its own place."""
    count, _, height, width = x_NCHW.shape
    device = x_NCHW.device
    corner = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
    rows = (corner[0] + torch.arange(height, device=device))[:, :, None]
    columns = (corner[1] + torch.arange(width, device=device))[:, None, :]
    padded_NHWC = F.pad(x_NCHW, (padding,) * 4).permute(0, 2, 3, 1)
    image = torch.arange(count, device=device)[:, None, None]
    return padded_NHWC[image, rows, columns].permute(0, 3, 1, 2)  # channels_last, at no extra cost


def random_flip(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    flip = torch.rand((len(x_NCHW), 1, 1, 1), generator=generator, device=x_NCHW.device) < 0.5
    return torch.where(flip, x_NCHW.flip(-1), x_NCHW)


def cutout(x_NCHW: Tensor, size: int, generator: torch.Generator, fill_C11: Tensor | None = None) -> Tensor:
    """A square of `size` pixels of colour `fill_C11` (none: black) around a random centre of each image, cut
    off at the border.

    Cutout (arXiv:1708.04552), whose code fills with the mean colour, since it cuts after normalising.
    """
    count, _, height, width = x_NCHW.shape
    device = x_NCHW.device
    centre = torch.rand((2, count, 1), generator=generator, device=device)

    def inside(length: int, where: Tensor) -> Tensor:
        start = (where * length).floor() - size // 2
        place = torch.arange(length, device=device)
        return (place >= start) & (place < start + size)

    hole = inside(height, centre[0])[:, None, :, None] & inside(width, centre[1])[:, None, None, :]
    return x_NCHW.masked_fill(hole, 0) if fill_C11 is None else torch.where(hole, fill_C11, x_NCHW)


def mixup(x_NCHW: Tensor, y_NK: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Each image and its class probabilities blended with another of the batch; share ~ Beta(alpha, alpha)
    (arXiv:1710.09412)."""
    count = len(x_NCHW)
    order = torch.from_numpy(rng.permutation(count)).to(x_NCHW.device, non_blocking=True)
    share = torch.from_numpy(rng.beta(alpha, alpha, count).astype(np.float32)).to(
        x_NCHW.device, non_blocking=True
    )
    blend = share[:, None, None, None]
    return x_NCHW * blend + x_NCHW[order] * (1 - blend), y_NK * share[:, None] + y_NK[order] * (
        1 - share[:, None]
    )


def resize(x_NCHW: Tensor, size: int) -> Tensor:
    """Bicubic resize of square images to `size` x `size`; the same tensor if they have that size already."""
    if x_NCHW.shape[-1] == size:
        return x_NCHW
    return F.interpolate(x_NCHW, size=(size, size), mode="bicubic", align_corners=False)
