"""Exact BatchNorm statistics of an extracted subnet, and its accuracy.

The stored BatchNorm statistics of a supernet fit no subnet, since all widths share them. BigNAS (2020,
arXiv:2003.11142) therefore calibrates each subnet on training images before it is measured.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.compute import evaluation
from engine.compute.precision import float32_as_exported
from engine.data.augment import resize
from engine.data.dataset import Batch, Data
from engine.statistics import Counts
from ofa.space.arch import Arch
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet

# The same on every device: a layer behind another sees inputs that were normalised by their own batch, so
# its statistics depend on what a batch is. An evaluation has larger batches where the device has memory.
CALIBRATION_BATCH = 64


def prepare(supernet: Supernet, arch: Arch, data: Data, images: int) -> Subnet:
    """Extract and calibrate `arch`, so that it can be measured or exported.

    Args:
        supernet: where the weights come from.
        arch: of the supernet's space.
        data: the images.
        images: how many training images to calibrate on; they are the same in every call.

    Returns:
        The subnet in eval mode, on the supernet's device.
    """
    return calibrate(extract(supernet, arch), data.batches("train", CALIBRATION_BATCH, images))


@torch.no_grad()
@float32_as_exported()
def calibrate(subnet: Subnet, batches: Iterable[Batch]) -> Subnet:
    """Give every BatchNorm its exact statistics over `batches`, and switch to eval mode.

    Every layer sees inputs normalised by each batch's own statistics, as in training. Its stored mean and
    variance become those of all values it saw, pooled over batches (variance within plus variance between,
    unbiased), however the images are split into batches of unequal size. They are not exponential averages.

    Args:
        subnet: what `ofa.subnet.extract` returned.
        batches: pairs of images (N, C, side, side) and labels, which are not used. At least one. If the head
            has a BatchNorm, batches of one image are left out.

    Returns:
        The same module.

    Raises:
        ValueError: there is no batch.
    """
    pools = {m: _Pool() for m in subnet.modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [bn.register_forward_hook(pool.add) for bn, pool in pools.items()]
    # In train mode, so that every layer sees what it saw in training: inputs normalised by their own batch.
    subnet.train()
    with _momentum(pools, 1.0):  # after each batch the buffers hold that batch's own statistics
        for x, _ in batches:
            # Behind the pool one image is one value a channel, which has no variance.
            if len(x) == 1 and subnet.head is not None and subnet.head.norm:
                continue
            subnet(resize(x, subnet.arch.resolution))
    for hook in hooks:
        hook.remove()
    for bn, pool in pools.items():
        pool.write(bn)
    return subnet.eval()


def subnet_accuracy(subnet: Subnet, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy in [0, 1] of a calibrated subnet, in float32 as exported.

    Args:
        subnet: in eval mode.
        batches: pairs of images (N, C, side, side), which are resized to the subnet's resolution, and labels.
    """

    return evaluation.accuracy(_on_squares(subnet), batches)


def subnet_confusion(subnet: Subnet, batches: Iterable[Batch], classes: int) -> Counts:
    """How many images of each class the subnet took for each class, as `evaluation.confusion` counts them."""
    return evaluation.confusion(_on_squares(subnet), batches, classes)


def _on_squares(subnet: Subnet) -> Callable[[Tensor], Tensor]:
    """The subnet as a function of images of any side."""

    def network(x: Tensor) -> Tensor:
        return subnet(resize(x, subnet.arch.resolution))

    return network


class _Pool:
    """Running count, mean and sum of squared deviations of a layer's input channels.

    Source: the pairwise update of Chan, Golub and LeVeque (1983).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert bn.running_mean is not None and bn.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        total = self.count + count
        # The hook runs after BatchNorm's forward, so with momentum 1 the buffers are this batch's statistics.
        # float64, since thousands of batches add up; the buffers themselves are float32.
        exact = torch.float32 if bn.running_mean.device.type == "mps" else torch.float64  # MPS has no float64
        delta = bn.running_mean.to(exact) - self.mean
        self.mean = self.mean + delta * (count / total)
        # torch stores a batch's variance unbiased, that is divided by count - 1.
        within = bn.running_var.to(exact) * (count - 1)
        between = delta**2 * (self.count * count / total)
        self.square = self.square + within + between
        self.count = total

    def write(self, bn: nn.BatchNorm2d) -> None:
        assert bn.running_mean is not None and bn.running_var is not None
        if not isinstance(self.mean, Tensor) or not isinstance(self.square, Tensor):
            raise ValueError("calibrate needs at least one batch of images, but got none.")
        bn.running_mean.copy_(self.mean)
        bn.running_var.copy_(self.square / (self.count - 1))


@contextmanager
def _momentum(norms: Iterable[nn.BatchNorm2d], value: float) -> Iterator[None]:
    """While the block runs, all `norms` have this momentum."""
    norms = list(norms)
    before = [bn.momentum for bn in norms]
    for bn in norms:
        bn.momentum = value
    yield
    for bn, momentum in zip(norms, before, strict=True):
        bn.momentum = momentum
