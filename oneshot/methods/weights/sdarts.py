"""SDARTS: Stabilizing Differentiable Architecture Search via Perturbation-based Regularization.

2020, arXiv:2002.05283. SDARTS-RS and SDARTS-ADV; settings of the released searches.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.compute.device import send
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.bilevel import first_order
from oneshot.methods.method import PUBLISHED, Method
from oneshot.state import SearchState

EPSILON_START = 0.03  # radius in the first epoch, whatever the last one's is


class Sdarts(Method):
    """The weights train with edge weights beside those of the alphas, which smooths the validation loss.

    SDARTS-RS moves them at random; SDARTS-ADV (`--method.attack adversarial`) moves them where the training
    loss is high. The alphas' own step is that of first-order DARTS.
    """

    name: Literal["sdarts"] = "sdarts"
    attack: Literal["random", "adversarial"] = Field(
        "random", description="how edge weights are moved: SDARTS-RS, or SDARTS-ADV"
    )
    epsilon: float = Field(
        0.3, gt=0, description="how far a weight is moved after the last epoch; 0.03 in the first"
    )
    attack_steps: int = Field(7, ge=1, description="steps of the adversary")

    steps_differ: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nasbench201": {"epochs": 100},
        "recurrent": PUBLISHED["recurrent"],
    }

    @model_validator(mode="after")
    def _attack_fits(self) -> Self:
        if self.level == "single":
            raise ValueError("method sdarts perturbs the step of the weights alone; it needs level bilevel")
        if self.relaxation.samples_operations or not self.relaxation.sums_to_one:
            raise ValueError(
                f"method sdarts perturbs weights that sum to 1, of operations that all run; relaxation "
                f"{self.relaxation.name} does not give them, take softmax"
            )
        return self

    def radius(self, state: SearchState) -> float:
        """How far a weight may be moved in this epoch."""
        return EPSILON_START + (self.epsilon - EPSILON_START) * state.progress.passed

    def perturb(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, draws: torch.Generator
    ) -> NetworkEdgeWeights:
        """Weights on the simplex, near those of the relaxation."""
        radius = self.radius(state)
        moved = {}
        for kind, cell_weights in edge_weights.items():
            weight_EO = cell_weights.weight_EO
            # Drawn on CPU, so that a seed means the same on every device.
            noise = torch.rand(weight_EO.shape, generator=draws, dtype=weight_EO.dtype) * 2 - 1
            moved[kind] = self._project(state, kind, weight_EO + radius * send(noise, weight_EO.device))
        if self.attack == "adversarial":
            moved = self._ascend(state, edge_weights, moved, batch, radius)
        return _with(edge_weights, moved)

    def _project(self, state: SearchState, kind: str, weight_EO: Tensor) -> Tensor:
        """As released: clamped to [0, 1], and divided by the sum of the edge."""
        allowed_EO = state.space.allowed_mask(kind, weight_EO.device)
        weight_EO = weight_EO.masked_fill(~allowed_EO, -torch.inf)
        hot = torch.zeros_like(weight_EO).scatter(-1, weight_EO.argmax(-1, keepdim=True), 1.0)
        clamped = weight_EO.clamp(0, 1)
        total = clamped.sum(-1, keepdim=True)
        # Where all were clamped to 0, the largest is left.
        return torch.where(total > 0, clamped / total.clamp_min(1e-30), hot)

    def _ascend(
        self,
        state: SearchState,
        start: NetworkEdgeWeights,
        moved: dict[str, Tensor],
        batch: Any,
        radius: float,
    ) -> dict[str, Tensor]:
        """Steps along the sign of the training loss's gradient, each projected onto the simplex."""
        objective, network = state.objective, state.objective.network
        # As released: the adversary sees the network in evaluation mode, where it has running statistics.
        network.train(state.samples_operations)
        with torch.no_grad():
            before = objective.loss(batch, start)
        for _ in range(self.attack_steps):
            leaves = {kind: weight_EO.detach().requires_grad_() for kind, weight_EO in moved.items()}
            attacked = _with(start, leaves)

            def loss(attacked: NetworkEdgeWeights = attacked) -> Tensor:
                return objective.loss(batch, attacked)

            _, gradients = first_order(network, loss, list(leaves.values()))
            for (kind, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                origin = start[kind].weight_EO
                step = leaf.detach() + 2 * radius / self.attack_steps * gradient.sign()
                inside = origin + (step - origin).clamp(-radius, radius)
                moved[kind] = self._project(state, kind, inside)
        with torch.no_grad():
            after = objective.loss(batch, _with(start, moved))
        network.train()
        # An attack that lowers the loss is none.
        failed = before > after
        return {
            kind: torch.where(failed, start[kind].weight_EO, weight_EO) for kind, weight_EO in moved.items()
        }


def _with(edge_weights: NetworkEdgeWeights, moved: dict[str, Tensor]) -> NetworkEdgeWeights:
    """The edge weights with other weights of operations."""
    replaced = {}
    for kind, cell_weights in edge_weights.items():
        replaced[kind] = cell_weights._replace(weight_EO=moved[kind])
    return replaced
