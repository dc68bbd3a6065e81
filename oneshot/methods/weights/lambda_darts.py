"""Lambda-DARTS: Mitigating Performance Collapse by Harmonizing Operation Selection among Cells.

2023, arXiv:2210.07998. The regulariser `corr` of its released code, in the step of the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from oneshot.axes.edge_weights import NetworkEdgeWeights, own_key
from oneshot.bilevel import joint_norm
from oneshot.methods.method import Method
from oneshot.networks.search import cells_network
from oneshot.spaces.cells import has_cells_of_images
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class LambdaDarts(Method):
    """DARTS whose cells agree: the weights are trained so that each cell's gradient of alphas is alike.

    The mean cosine between the gradients of all pairs of normal cells is raised, by finite differences.
    """

    name: Literal["lambda_darts"] = "lambda_darts"
    strength: float = Field(
        0.125, ge=0, description="lambda: weight of the mean cosine in the last epoch; it grows from 0"
    )
    epsilon: float = Field(1e-4, gt=0, description="length of the two steps of the finite difference")

    steps_differ: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nasbench201": {"weights_first": True, "epochs": 100}
    }

    @model_validator(mode="after")
    def _regulariser_fits(self) -> Self:
        if self.level == "single" or self.relaxation.samples_operations:
            raise ValueError(
                "method lambda_darts looks at the gradients of all operations in the step of the weights; it "
                "needs level bilevel, and a relaxation that runs all operations"
            )
        return self

    def perturb(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, draws: torch.Generator
    ) -> NetworkEdgeWeights:
        """The same weights, of each normal cell in a tensor of its own that gets a gradient."""
        found = dict(edge_weights)
        for kind, key in self._keys(state):
            of_kind = edge_weights[kind]
            found[key] = of_kind._replace(weight_EO=of_kind.weight_EO.clone().requires_grad_())
        return found

    def _keys(self, state: SearchState) -> list[tuple[str, str]]:
        """(kind, key of its own) for each cell of the first kind, if there are two or more."""
        network, kind = cells_network(state.objective.network), state.space.cells[0]
        numbers = network.numbers_of(kind)
        if len(numbers) < 2:
            return []
        return [(kind, own_key(kind, number)) for number in numbers]

    def move_weights(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, step: Callable[[], None]
    ) -> None:
        """Add the regulariser's gradient before the weights move."""
        keys = [key for _, key in self._keys(state)]
        strength = state.progress.between(0.0, self.strength)
        if keys and strength > 0:
            self._add_gradients(state, edge_weights, keys, batch, strength)
        step()

    def _add_gradients(
        self,
        state: SearchState,
        edge_weights: NetworkEdgeWeights,
        keys: list[str],
        batch: Any,
        strength: float,
    ) -> None:
        gradients = []
        for key in keys:
            gradient = edge_weights[key].weight_EO.grad
            assert gradient is not None, "every cell runs"
            gradients.append(gradient)
        directions = alignment_gradients(gradients)
        epsilon = self.epsilon / joint_norm(directions).clamp_min(1e-30)
        behind = self._gradients_at(
            state, edge_weights, dict(zip(keys, directions, strict=True)), -epsilon, batch
        )
        ahead = self._gradients_at(
            state, edge_weights, dict(zip(keys, directions, strict=True)), epsilon, batch
        )
        weights = state.objective.network.parameters()
        for w, minus, plus in zip(weights, behind, ahead, strict=True):
            assert w.grad is not None
            # The cosine is raised: its gradient is subtracted from the loss's.
            w.grad.add_(strength * (minus - plus) / (2 * epsilon))

    def _gradients_at(
        self,
        state: SearchState,
        edge_weights: NetworkEdgeWeights,
        directions: dict[str, Tensor],
        length: Tensor,
        batch: Any,
    ) -> tuple[Tensor, ...]:
        """The weights' gradients where each cell's own edge weights are moved."""
        moved = dict(edge_weights)
        for key, direction in directions.items():
            of_cell = edge_weights[key]
            moved[key] = of_cell._replace(weight_EO=of_cell.weight_EO.detach() + length * direction)
        network = state.objective.network
        weights = dict(network.named_parameters())
        # Copies: the two passes leave no trace in the statistics.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        value = state.objective.loss(batch, moved, weights | buffers)
        return torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)

    def _misfit(self, space: SearchSpace) -> str | None:
        if not has_cells_of_images(space):
            return "it aligns several cells that share alphas, which a search network of images has"
        return super()._misfit(space)


def alignment_gradients(gradients: list[Tensor]) -> list[Tensor]:
    """Of the mean cosine between all pairs of `gradients`, the gradient in each of them.

    For g with direction u it is (I - u u^T) (sum of all directions) / |g|, over the number of pairs.
    """
    pairs = len(gradients) * (len(gradients) - 1) / 2
    units = [g / g.norm() for g in gradients]
    total = torch.stack(units).sum(0)
    found = []
    for g, unit in zip(gradients, units, strict=True):
        across = total - unit * (unit * total).sum()
        found.append(across / (g.norm() * pairs))
    return found
