"""OLES: Operation-Level Early Stopping for Robustifying Differentiable NAS (2023, NeurIPS).

It has no arXiv number. Settings of its released search.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.methods.method import Method
from oneshot.networks.edge_operations import Convolution, Separable
from oneshot.networks.parallel_edges import ParallelEdges
from oneshot.spaces.cells import has_cells_of_images
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class StackedOperation(NamedTuple):
    """An operation with weights, on all edges that leave one state of one cell.

    Args:
        name: of its module in the network.
        weights: the names of its weights.
        edges: how many edges share a weight, a block of rows each.
    """

    name: str
    weights: tuple[str, ...]
    edges: int


class Oles(Method):
    """DARTS that stops to train a convolution once its gradients of both losses disagree.

    Each convolution of each edge of each cell counts by itself: while its gradient of the training loss still
    points where that of the validation loss points, it has something to learn that holds for both.
    """

    name: Literal["oles"] = "oles"
    least_cosine: float = Field(
        0.4,
        ge=-1,
        le=1,
        description="an operation whose mean cosine falls below this is not trained any more",
    )
    window: int = Field(20, ge=1, description="steps that the mean is over")

    needs_validation_gradients: ClassVar[bool] = True
    steps_differ: ClassVar[bool] = True

    @model_validator(mode="after")
    def _gradients_fit(self) -> Self:
        if self.level != "bilevel" or self.order != "first" or self.relaxation.samples_operations:
            raise ValueError(
                "method oles compares the gradients of two losses for each operation; it needs level "
                "bilevel, order first, and a relaxation that runs all operations"
            )
        return self

    def see_validation_gradients(self, state: SearchState, gradients: Mapping[str, Tensor]) -> None:
        """Compare them with those of the last step of the weights, and stop what disagrees."""
        memory = state.memory
        # Before the first step of the weights there is nothing to compare with.
        if not memory:
            return
        count = int(memory.get("count", torch.tensor(0)))
        for operation in _operations(state.objective.network):
            total = memory.get(f"cosine {operation.name}", 0.0) + _cosines(operation, gradients, memory)
            memory[f"cosine {operation.name}"] = total
            # As released: the sum of window + 1 steps is divided by window.
            if count == self.window:
                stopped = memory.get(f"stopped {operation.name}", torch.zeros_like(total, dtype=torch.bool))
                memory[f"stopped {operation.name}"] = stopped | (total / self.window < self.least_cosine)
                memory[f"cosine {operation.name}"] = torch.zeros_like(total)
        memory["count"] = torch.tensor(0 if count == self.window else count + 1)

    def move_weights(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, step: Callable[[], None]
    ) -> None:
        """Move all weights but those of stopped operations, and remember the gradients."""
        weights, before = dict(state.objective.network.named_parameters()), {}
        rows = dict(_stopped_rows(state))
        for name, stands_C in rows.items():
            gradient = weights[name].grad
            assert gradient is not None
            # Without its part in the norm that gradients are clipped to.
            gradient.masked_fill_(stands_C, 0.0)
            before[name] = weights[name].detach().clone()
        step()
        with torch.no_grad():
            for name, stands_C in rows.items():
                # Neither decay nor momentum moves it.
                weights[name].copy_(torch.where(stands_C, before[name], weights[name]))
        for operation in _operations(state.objective.network):
            for name in operation.weights:
                gradient = weights[name].grad
                assert gradient is not None
                state.memory[f"gradient {name}"] = gradient.clone()

    def _misfit(self, space: SearchSpace) -> str | None:
        if not has_cells_of_images(space):
            return "it stops the weights of single operations, which cells of images have"
        return super()._misfit(space)


def _operations(network: nn.Module) -> Iterator[StackedOperation]:
    """Every convolution of the search network; other operations are not stopped in the released code."""
    for name, module in network.named_modules():
        if not isinstance(module, ParallelEdges):
            continue
        for operation, own in module.own.items():
            if isinstance(own, Separable | Convolution):
                path = f"{name}.own.{operation}"
                weights = tuple(f"{path}.{weight}" for weight, _ in own.named_parameters())
                yield StackedOperation(path, weights, len(module.allowed[operation]))


def _cosines(
    operation: StackedOperation, gradients: Mapping[str, Tensor], memory: dict[str, Tensor]
) -> Tensor:
    """(n,): for each edge the mean cosine, over its weights.

    As released: the cosine is along the output channels, and its mean over all other axes.
    """
    found = []
    for name in operation.weights:
        shape = gradients[name].shape
        blocks = (operation.edges, shape[0] // operation.edges, *shape[1:])
        ours, theirs = gradients[name].reshape(blocks), memory[f"gradient {name}"].reshape(blocks)
        found.append(F.cosine_similarity(ours, theirs, dim=1).flatten(1).mean(1))
    return torch.stack(found).mean(0)


def _stopped_rows(state: SearchState) -> Iterator[tuple[str, Tensor]]:
    """For the weights of each operation of which an edge may be stopped: (name, mask that broadcasts)."""
    weights = dict(state.objective.network.named_parameters())
    for operation in _operations(state.objective.network):
        stopped_n = state.memory.get(f"stopped {operation.name}")
        if stopped_n is None:
            continue
        for name in operation.weights:
            rows = len(weights[name]) // operation.edges
            yield name, stopped_n.repeat_interleave(rows).view(-1, 1, 1, 1)
