"""What a search needs of its objective, images or text."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.bilevel import LossFn, VirtualStep


class Objective(Protocol):
    """The search network, its loss, and the batches of both levels."""

    network: nn.Module
    quality: str  # what `measure` returns: accuracy (more is better) or perplexity (less is better)
    about: str  # what there is to learn from, in words
    batch_items: int  # images or words in a usual batch
    measured_items: int  # images or words that `measure` sees without a limit

    @property
    def chance(self) -> float:
        """The quality without looking: at the images, or at the words before."""
        ...

    @property
    def loss(self) -> LossFn:
        """The loss of the network on a batch."""
        ...

    def replace(self, network: nn.Module) -> None:
        """Go on with another network, in a later stage of a search."""
        ...

    def steps(self, epoch: int) -> int:
        """The number of pairs of batches in an epoch."""
        ...

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Any, Any]]:
        """(batch of the weights' part, batch of the architecture's part), without the first `skip` pairs."""
        ...

    def rate(self, batch: Any) -> float:
        """The factor of the learning rate for this batch."""
        ...

    def for_weights(self, batch: Any) -> Any:
        """The batch as the weights' own step sees it."""
        ...

    def measure(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        """Quality on the architecture's part, nothing augmented; on at most `limit` images or words."""
        ...

    def virtual_step(self, sgd: WeightSgd, rate: float, buffers: list[Tensor | None]) -> VirtualStep:
        """The next step of the weights, to which an architecture step of second order looks ahead."""
        ...

    def reward_batches(self, epoch: int) -> Iterator[Any]:
        """Batches of the architecture's part without end, on which architectures are rewarded."""
        ...

    def reward(self, batch: Any, edge_weights: NetworkEdgeWeights) -> float:
        """How well an architecture does on one of them; more is better."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that one step hands to the next, beside the weights."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up such a state."""
        ...
