"""Augmentation of whole batches on the device, every image with its own draw.

torchvision's RandomCrop gives every image of a batch the same crop. These functions draw for each image and
still take a few kernels for a batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compute.device import send


def random_crop(x_NCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image padded by zeros and cropped back to its size at a random place of its own.

    Args:
        x_NCHW: images.
        padding: pixels added on every side.
        generator: on the device of the images.
    """
    count, _, height, width = x_NCHW.shape
    device = x_NCHW.device
    corner = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
    rows = (corner[0] + torch.arange(height, device=device))[:, :, None]
    columns = (corner[1] + torch.arange(width, device=device))[:, None, :]
    padded_NHWC = F.pad(x_NCHW, (padding,) * 4).permute(0, 2, 3, 1)
    # One gather for the batch: pixel (h, w) of image n is padded[n, rows[n, h], columns[n, w]].
    image = torch.arange(count, device=device)[:, None, None]
    return padded_NHWC[image, rows, columns].permute(0, 3, 1, 2)  # channels_last, at no extra cost


def random_flip(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half. The generator is on their device."""
    flip = torch.rand((len(x_NCHW), 1, 1, 1), generator=generator, device=x_NCHW.device) < 0.5
    return torch.where(flip, x_NCHW.flip(-1), x_NCHW)


def cutout(x_NCHW: Tensor, size: int, generator: torch.Generator, fill_C11: Tensor | None = None) -> Tensor:
    """Each image with a square of one colour around a random centre.

    Source: Cutout (2017, arXiv:1708.04552), whose code fills with the mean colour, since it cuts after
    normalising.

    Args:
        x_NCHW: images.
        size: side of the square in pixels; what reaches over the border is cut off.
        generator: on the device of the images.
        fill_C11: the colour; None: black.
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
    """Each image and its class probabilities blended with another of the batch.

    Source: mixup (2017, arXiv:1710.09412). Here every image has a share of its own.

    Args:
        x_NCHW: normalised images.
        y_NK: class probabilities.
        alpha: an image keeps a share that is drawn from Beta(alpha, alpha).
        rng: draws partners and shares. NumPy's, since torch's Beta distribution takes no generator.

    Returns:
        The blended images (N, C, H, W) and probabilities (N, K).
    """
    count, device = len(x_NCHW), x_NCHW.device
    order_N = send(torch.from_numpy(rng.permutation(count)), device)
    drawn_N = rng.beta(alpha, alpha, count).astype(np.float32)
    share_N1 = send(torch.from_numpy(drawn_N), device)[:, None]
    share_N111 = share_N1[:, :, None, None]
    x = x_NCHW * share_N111 + x_NCHW[order_N] * (1 - share_N111)
    y = y_NK * share_N1 + y_NK[order_N] * (1 - share_N1)
    return x, y


def resize(x_NCHW: Tensor, size: int) -> Tensor:
    """Bicubic resize of square images to `size` x `size`; the same tensor if they have that size already."""
    if x_NCHW.shape[-1] == size:
        return x_NCHW
    return F.interpolate(x_NCHW, size=(size, size), mode="bicubic", align_corners=False)
