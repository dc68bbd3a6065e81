"""A search on images: classification, on the space of DARTS or of NAS-Bench-201."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.compiling import eagerly
from engine.compute.evaluation import BYTES_OF_CELLS, accuracy
from engine.compute.precision import autocast
from engine.data.dataset import Data, Subset
from engine.errors import UserError
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.bilevel import LossFn, VirtualStep, Weights
from oneshot.chains.layers import ImageShape
from oneshot.methods.method import Method
from oneshot.networks.parallel_edges import EdgeSettings
from oneshot.networks.search import DartsNetwork, NasBench201Network, StemName
from oneshot.spaces.cells import CellSpace

CPU_BATCH = 250  # images at a time in an evaluation on a CPU
OTHER_PASSES = 10**6  # more epochs than any search has


def search_network(
    space: CellSpace,
    method: Method,
    channels: int,
    cells: int,
    classes: int,
    inputs: int,
    stem: StemName = "cifar",
) -> nn.Module:
    """The untrained search network of a space of images, drawn from torch's global generator."""
    auxiliary = method.auxiliary_skip is not None
    if space.graph == "nasbench201":
        # The published searches always take the statistics of the batch.
        settings = EdgeSettings(method.partial, track=False, pool_norm=False, auxiliary=auxiliary)
        return NasBench201Network(space, channels, cells, classes, inputs, settings)
    # Where only some operations run, BatchNorm always takes the statistics of the batch.
    track = not method.samples_operations
    settings = EdgeSettings(method.partial, track, method.pool_norm, auxiliary)
    return DartsNetwork(space, channels, cells, classes, inputs, settings, method.last_norm, stem)


class ImageLoss:
    """Cross-entropy of a search network on a batch (images, classes)."""

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(
        self,
        batch: Any,
        edge_weights: NetworkEdgeWeights,
        weights: Weights | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """See `LossFn`."""
        x, y = batch
        inputs = (x, edge_weights, create_graph)
        # Compiled parts cannot be differentiated twice.
        with autocast(x.device), eagerly() if create_graph else contextlib.nullcontext():
            if weights is None:
                logits = self.network(*inputs)
            else:
                logits = torch.func.functional_call(self.network, weights, inputs)
        # The loss in float32, also where layers computed in bfloat16; a float64 network keeps its digits.
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y)


class ImageObjective:
    """Classification of images; the validation split is the architecture's part.

    Args:
        network: a search network; moved to the device of `data`.
        data: images; on NAS-Bench-201's network their sides are multiples of 4.
        batch_size: images a step.
        single_level: weights and architecture learn from the images of both splits.
        two_batches: with a single level, each from a batch of its own; else both from the same one.

    Raises:
        UserError: images of this side or so few images cannot be searched on.
    """

    quality = "accuracy"

    loss: LossFn

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        batch_size: int,
        single_level: bool,
        two_batches: bool = False,
    ):
        if data.size % 4 and isinstance(network, NasBench201Network):
            raise UserError(
                f"Images of side {data.size} cannot be halved twice, as the network of NAS-Bench-201 does; "
                "use a multiple of 4."
            )
        self.data, self.batch_size, self.batch_items = data, batch_size, batch_size
        self.replace(network)
        self.weights_part: Subset = "both" if single_level else "train"
        self.architecture_part: Subset = "both" if single_level else "val"
        self.same_batch = single_level and not two_batches
        self.measured_items = data.count("val")
        # A batch that is larger than a part is refused now, not in the first step.
        data.steps(batch_size, self.weights_part)
        data.steps(batch_size, self.architecture_part)
        weights, architecture = data.size_of(self.weights_part), data.size_of(self.architecture_part)
        self.about = (
            f"{len(data.classes)} classes; {weights} images for the weights, {architecture} images for the "
            "architecture"
        )

    def replace(self, network: nn.Module) -> None:
        """Go on with this network, on the device of the images."""
        self.network: nn.Module = network.to(self.data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = ImageLoss(self.network)

    @property
    def image(self) -> ImageShape:
        """What the network is built for."""
        return ImageShape(self.data.size, self.data.channels, len(self.data.classes))

    @property
    def chance(self) -> float:
        """The accuracy of who always names the most frequent class; of balanced classes, any class."""
        counts_K = self.data.class_counts("val")
        # Balanced training gives up accuracy on the large classes, so it may end below their share.
        if counts_K is None or self.data.config.balance != "none":
            return 1 / len(self.data.classes)
        return float(counts_K.max() / counts_K.sum())

    def steps(self, epoch: int) -> int:
        """Pairs of batches in an epoch."""
        return self.data.steps(self.batch_size, self.weights_part)

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """Pairs of batches, both augmented.

        Where the architecture's part is smaller, it is passed over again. Single level: the same batch as
        both, unless each has its own.
        """
        train = self.data.train_batches(self.batch_size, epoch, skip, subset=self.weights_part)
        # One loss serves both levels, so both see the same images.
        if self.same_batch:
            yield from ((batch, batch) for batch in train)
            return
        # The validation batches have no end: the epoch ends with the training images.
        yield from zip(train, self._validation_batches(epoch, skip), strict=False)

    def _validation_batches(self, epoch: int, skip: int) -> Iterator[Any]:
        """Augmented batches of the architecture's part without end, from where the search is."""
        part = self.architecture_part
        steps = self.data.steps(self.batch_size, part)
        # Where both parts are all images, the passes of this one are numbered elsewhere: another order.
        first = OTHER_PASSES if part == self.weights_part else 0
        # Counted through all epochs: a pass over the validation images need not begin with an epoch.
        number = epoch * self.steps(epoch) + skip
        while True:
            passes, done = divmod(number, steps)
            yield from self.data.train_batches(self.batch_size, first + passes, done, subset=part)
            number = (passes + 1) * steps

    def rate(self, batch: Any) -> float:
        """1, since all batches are of one size."""
        return 1.0

    def for_weights(self, batch: Any) -> Any:
        """The same batch."""
        return batch

    def measure(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        """Accuracy in [0, 1]."""
        network = functools.partial(self.network, edge_weights=edge_weights)
        return accuracy(network, self.data.evaluation_batches("val", limit, CPU_BATCH, BYTES_OF_CELLS))

    def virtual_step(self, sgd: WeightSgd, rate: float, buffers: list[Tensor | None]) -> VirtualStep:
        """Without clipping, as the published code."""
        return VirtualStep(rate, sgd.momentum, sgd.weight_decay, buffers)

    def reward_batches(self, epoch: int) -> Iterator[Any]:
        """Augmented images."""
        return self._validation_batches(epoch, 0)

    def reward(self, batch: Any, edge_weights: NetworkEdgeWeights) -> float:
        """Accuracy in [0, 1]."""
        x, y = batch
        # Mixup and class weights deliver rows of probabilities, whose largest is that of the class.
        classes = y.argmax(1) if y.ndim == 2 else y
        return float((self.network(x, edge_weights).argmax(1) == classes).float().mean())

    def state(self) -> dict[str, Tensor]:
        """Images need none."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Images need none."""
