"""The accuracy that a subnet will have in 8 bits, and training that knows of them.

Nothing is exported for it: `engine.compute.fake_quantize` rounds as the file will. `export.onnx` then finds
ranges of its own and judges the file itself.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import functional_call

from engine.compute import evaluation
from engine.compute.fake_quantize import FakeQuantize, Ranges
from engine.compute.precision import float32_as_exported
from engine.data.augment import resize
from engine.data.dataset import Batch, Data
from engine.statistics import Counts
from ofa.space.arch import Arch, largest
from ofa.subnet import Subnet
from ofa.supernet import Supernet

CALIBRATION_IMAGES = 256  # as export.onnx takes them by default


def rounded_subnet(subnet: Subnet, data: Data) -> Callable[[Tensor], Tensor]:
    """A subnet as a function of images of any side, computed as its 8-bit file will.

    Args:
        subnet: calibrated, in eval mode.
        data: its training images give the ranges, as those of export do.
    """
    side, ranges = subnet.arch.resolution, Ranges()
    with torch.no_grad(), float32_as_exported():
        for x, _ in data.evaluation_batches("train", CALIBRATION_IMAGES):
            with FakeQuantize(ranges, "widen"):
                subnet(resize(x, side))

    def network(x: Tensor) -> Tensor:
        # Outside of the block: the resize is no part of the file.
        x = resize(x, side)
        with FakeQuantize(ranges):
            return subnet(x)

    return network


def int8_accuracy(subnet: Subnet, data: Data, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy in [0, 1] of a calibrated subnet in 8 bits.

    Args:
        subnet: in eval mode.
        data: its training images give the ranges.
        batches: pairs of images and labels.
    """
    return evaluation.accuracy(rounded_subnet(subnet, data), batches)


def int8_confusion(subnet: Subnet, data: Data, batches: Iterable[Batch], classes: int) -> Counts:
    """How many images of each class the subnet in 8 bits took for each class."""
    return evaluation.confusion(rounded_subnet(subnet, data), batches, classes)


class RoundedNetwork:
    """A network that is trained to be an 8-bit file: its forward rounds, and gradients pass.

    It runs the plain layers of the subnet with the weights of the network, which learns. The network's own
    forward has fused layers, in which nothing could be rounded.

    Args:
        network: of `ofa.training.tuning.single_network`.
    """

    def __init__(self, network: Supernet):
        self.network = network
        self.space, self.arch = network.space, largest(network.space)
        with torch.device("meta"):
            self.plain = Subnet(network.space, self.arch, network.classes, network.channels)

    def __call__(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (N, classes) of images (N, channels, side, side), in train mode."""
        assert arch == self.arch
        weights = self.network.slices(arch)
        self.plain.train(self.network.training)
        x = resize(x, arch.resolution)
        with FakeQuantize(Ranges(), "batch"):
            logits: Tensor = functional_call(self.plain, weights, (x,))
        return logits
