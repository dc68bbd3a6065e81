"""The state of a running search, and how good its shared weights are."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.compute.device import send_together
from engine.optim import load_optimizer
from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.progress import Progress
from oneshot.chains.target import CostTarget
from oneshot.objectives.objective import Objective
from oneshot.spaces.search_space import SearchSpace


@dataclass
class SearchState:
    """Everything that changes during a search. Methods read it; `oneshot.searcher` changes it.

    Args:
        space: what is searched.
        objective: network, loss and batches.
        alphas: the architecture's parameters.
        weight_optimizer: moves the network's weights.
        architecture_optimizer: moves the alphas; None where there are none.
        seed: of what is drawn in each step.
        progress: where the search is.
        samples_operations: whether the network runs some of its operations only.
        target: the cost that a search of a chain ends at; None: any.
        lead: where whole architectures were judged, by how much the best was better than the next, in
            accuracy or perplexity; None: none were.
    """

    space: SearchSpace
    objective: Objective
    alphas: Alphas
    weight_optimizer: torch.optim.Optimizer
    architecture_optimizer: torch.optim.Optimizer | None
    seed: int
    progress: Progress
    samples_operations: bool
    target: CostTarget | None = None
    lead: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.objective.network.parameters()).device

    def on_device(self, edge_weights: NetworkEdgeWeights) -> NetworkEdgeWeights:
        """Edge weights where the network is; methods that draw architectures build them on CPU."""
        sent = send_together([found.weight_EO for found in edge_weights.values()], self.device)
        moved = {}
        for (kind, found), weight_EO in zip(edge_weights.items(), sent, strict=True):
            moved[kind] = found._replace(weight_EO=weight_EO)
        return moved

    def measure(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        """Quality of the shared weights on the architecture's part; on at most `limit` images or words."""
        with self._evaluation():
            return self.objective.measure(self.on_device(edge_weights), limit)

    def measure_discretised(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        """As `measure`, with BatchNorm statistics of each batch, of which no trace is left.

        The running statistics belong to the mixture that was trained; what is read off it has others.
        """
        network = self.objective.network
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        network.train()
        with torch.no_grad():
            value = self.objective.measure(self.on_device(edge_weights), limit)
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        return value

    def reward(self, edge_weights: NetworkEdgeWeights, batch: Any) -> float:
        """How good the shared weights are on one batch; a higher number is better."""
        with self._evaluation():
            return self.objective.reward(batch, self.on_device(edge_weights))

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        """No gradients, and BatchNorms in evaluation mode.

        A network that runs some of its operations only stays in training mode: what it runs has no running
        statistics of its own.
        """
        self.objective.network.train(self.samples_operations)
        with torch.no_grad():
            yield
        self.objective.network.train()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs."""
        architecture, controller = self.architecture_optimizer, self.alphas.controller
        return {
            "network": self.objective.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alphas": [parameter.detach() for parameter in self.alphas.all()],
            "architecture_optimizer": None if architecture is None else architecture.state_dict(),
            "objective": self.objective.state(),
            "target": None if self.target is None else self.target.integral,
            "controller": None if controller is None else controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.objective.network.load_state_dict(state["network"])
        load_optimizer(self.weight_optimizer, state["weight_optimizer"])
        with torch.no_grad():
            parameters: list[Tensor] = self.alphas.all()
            # In place: the optimisers hold these very tensors.
            for parameter, value in zip(parameters, state["alphas"], strict=True):
                parameter.copy_(value)
        if self.architecture_optimizer is not None:
            load_optimizer(self.architecture_optimizer, state["architecture_optimizer"])
        self.objective.load(state["objective"])
        if self.target is not None:
            self.target.integral.copy_(state["target"])
        # The controller's parameters are among the alphas; its average of rewards is not.
        if self.alphas.controller is not None:
            self.alphas.controller.load_state_dict(state["controller"])
