"""Exact BatchNorm statistics of an extracted subnet, and its accuracy.

The stored BatchNorm statistics of a supernet fit no subnet, since all widths share them. BigNAS (2020,
arXiv:2003.11142) therefore calibrates each subnet on training images before it is measured.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.compute import evaluation
from engine.compute.device import send
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
    norms = [m for m in subnet.modules() if isinstance(m, nn.BatchNorm2d)]
    pool = _Pool(norms)
    hooks = [bn.register_forward_hook(pool.note) for bn in norms]
    # In train mode, so that every layer sees what it saw in training: inputs normalised by their own batch.
    subnet.train()
    with _momentum(norms, 1.0):  # after each batch the buffers hold that batch's own statistics
        for x, _ in batches:
            # Behind the pool one image is one value a channel, which has no variance.
            if len(x) == 1 and subnet.head is not None and subnet.head.norm:
                continue
            subnet(resize(x, subnet.arch.resolution))
            pool.add()
    for hook in hooks:
        hook.remove()
    pool.write()
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
    """Count, mean and sum of squared deviations of the input channels of all BatchNorms, batch by batch.

    Source: the pairwise update of Chan, Golub and LeVeque (1983). The channels of all layers, C, are one
    vector: a batch takes a few kernels instead of a dozen for each layer, which on a GPU took longer to
    launch than the network itself.
    """

    def __init__(self, norms: list[nn.BatchNorm2d]):
        self.norms = norms
        self.counts = dict.fromkeys(norms, 0)  # values a channel in the last batch
        self.vectors: dict[tuple[int, ...], Tensor] = {}
        self.count_C: Tensor | None = None
        self.mean_C: Tensor | float = 0.0
        self.square_C: Tensor | float = 0.0

    def note(self, bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """How many values a channel had in this batch. A hook, which runs after BatchNorm's forward."""
        self.counts[bn] = inputs[0].numel() // inputs[0].shape[1]

    def add(self) -> None:
        """Add a batch, whose own statistics are in the buffers, since momentum is 1."""
        if not self.norms:
            return
        buffers = [(bn.running_mean, bn.running_var) for bn in self.norms]
        # float64, since thousands of batches add up; the buffers themselves are float32.
        count_C = self._per_channel(tuple(self.counts.values()))
        mean_C = torch.cat([mean for mean, _ in buffers]).to(count_C.dtype)  # type: ignore[misc]
        var_C = torch.cat([var for _, var in buffers]).to(count_C.dtype)  # type: ignore[misc]
        before_C = torch.zeros_like(count_C) if self.count_C is None else self.count_C
        total_C = before_C + count_C
        delta_C = mean_C - self.mean_C
        self.mean_C = self.mean_C + delta_C * (count_C / total_C)
        # torch stores a batch's variance unbiased, that is divided by count - 1.
        within_C = var_C * (count_C - 1)
        between_C = delta_C**2 * (before_C * count_C / total_C)
        self.square_C = self.square_C + within_C + between_C
        self.count_C = total_C

    def _per_channel(self, counts: tuple[int, ...]) -> Tensor:
        """The counts (layers,) as a vector (C,) on the device; batches of one size share it."""
        if counts not in self.vectors:
            mean = self.norms[0].running_mean
            assert mean is not None
            exact = torch.float32 if mean.device.type == "mps" else torch.float64  # MPS has no float64
            channels = torch.tensor([bn.num_features for bn in self.norms])
            vector = torch.tensor(counts, dtype=exact).repeat_interleave(channels)
            self.vectors[counts] = send(vector, mean.device)
        return self.vectors[counts]

    def write(self) -> None:
        """Give each BatchNorm its mean and its unbiased variance."""
        if not self.norms:
            return
        if self.count_C is None or not isinstance(self.mean_C, Tensor):
            raise ValueError("calibrate needs at least one batch of images, but got none.")
        var_C = self.square_C / (self.count_C - 1)
        widths = [bn.num_features for bn in self.norms]
        pairs = zip(torch.split(self.mean_C, widths), torch.split(var_C, widths), strict=True)
        for bn, (mean, var) in zip(self.norms, pairs, strict=True):
            assert bn.running_mean is not None and bn.running_var is not None
            bn.running_mean.copy_(mean)
            bn.running_var.copy_(var)


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
