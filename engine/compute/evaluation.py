"""How good a network is on images: in float32 as exported, in batches that suit the device."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from engine.compute.precision import float32_as_exported
from engine.errors import UserError
from engine.statistics import Counts

# Images at a time on a CPU. Larger maps cost more there in page faults than in arithmetic: 3 times as much
# at 256 x 128 pixels.
CPU_BATCH = 64
GPU_BATCHES = (64, 1024)  # the fewest and the most images at a time on a GPU; more would not be faster
# Memory of a forward pass for each pixel of an image. Counted: subnets of published spaces 272 to 640 bytes;
# a search network of DARTS 3,328 and the network of DARTS_V2 3,744, which keep the full size longer.
BYTES_OF_BLOCKS, BYTES_OF_CELLS = 1024, 4096
# In counts of pairs of classes: 4 GB. ImageNet-21k has 21,841.
MOST_CLASSES = 22_000


def evaluation_batch(
    device: torch.device, size: int, on_cpu: int = CPU_BATCH, bytes_a_pixel: int = BYTES_OF_BLOCKS
) -> int:
    """How many images an evaluation takes at a time; only speed, memory and rounding depend on it.

    On a GPU: what a quarter of its memory holds, as a power of two from 64 to 1024. The memory that it has
    counts, not what is free now, so that two evaluations are the same.

    Args:
        device: where networks are evaluated.
        size: side of the square images in pixels.
        on_cpu: the batch on other devices.
        bytes_a_pixel: what the network needs for a pixel of an image.
    """
    if device.type != "cuda":
        return on_cpu
    memory = torch.cuda.get_device_properties(device).total_memory
    fitting = memory // 4 // (bytes_a_pixel * size**2)
    least, most = GPU_BATCHES
    # The largest power of two up to `fitting`; 1 where that is 0.
    power = 1 << max(fitting.bit_length() - 1, 0)
    return min(max(power, least), most)


@torch.no_grad()
@float32_as_exported()
def accuracy(network: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy: the share of images, in [0, 1], whose largest logit is that of their label.

    It computes in float32 without TF32, whatever precision the caller trains in.

    Args:
        network: from images (N, C, H, W) to logits (N, K).
        batches: pairs of images and labels (N,); at least one.
    """
    hits, count = [], 0
    for x, y in batches:
        # The counts stay on the device: the host waits for it once, at the end.
        hits.append((network(x).argmax(1) == y).sum())
        count += len(y)
    return float(torch.stack(hits).sum()) / count


@torch.no_grad()
@float32_as_exported()
def confusion(
    network: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Counts:
    """How many images of each class (row) were taken for each class (column); the diagonal was right.

    `engine.statistics` makes accuracies of it: overall, by class, and balanced. It computes in float32 as
    `accuracy` does.

    Args:
        network: from images (N, C, H, W) to logits (N, K).
        batches: pairs of images and labels (N,); at least one.
        classes: K.

    Returns:
        Counts (K, K).

    Raises:
        UserError: the counts of so many classes would not fit into memory.
    """
    if classes > MOST_CLASSES:
        raise UserError(
            f"Which of {classes} classes are mixed up takes {classes**2 * 8 / 1e9:.0f} GB to count; at most "
            f"{MOST_CLASSES} can be. Training, collecting, selecting and exporting count nothing."
        )
    total = None
    for x, y in batches:
        # One number for each pair of classes, so that one count serves all; it stays on the device.
        pairs = y * classes + network(x).argmax(1)
        if total is None:
            total = torch.zeros(classes**2, dtype=torch.int64, device=pairs.device)
        # Not `bincount`, which asks the device for its largest number, so that the host waits at every batch.
        total.scatter_add_(0, pairs, torch.ones_like(pairs))
    assert total is not None
    return total.view(classes, classes).cpu().numpy()
