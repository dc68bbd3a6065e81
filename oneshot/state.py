"""The state of a running search, and how good its shared weights are."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.compute.compiling import eagerly
from engine.compute.device import send_together
from engine.optim import load_optimizer
from engine.seed import derive
from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.progress import Progress
from oneshot.chains.target import CostTarget
from oneshot.networks.search import cells_network
from oneshot.objectives.objective import Objective
from oneshot.spaces.cells import CellSpace
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
        stage: of a search in stages, from 0 on.
        memory: what else the method hands from one step to the next; a checkpoint holds it.
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
    stage: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

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

    def restart_weights(self, momentum: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """A new optimiser of the network's weights, with the old one's settings.

        Args:
            momentum: the momentum that weights of the network start with; others start with none.
        """
        old = self.weight_optimizer
        self.weight_optimizer = type(old)(self.objective.network.parameters(), **old.defaults)
        for parameter, buffer in (momentum or {}).items():
            # Laid out like the weight: torch's fused SGD on CUDA refuses any other strides.
            own = torch.empty_like(parameter).copy_(buffer)
            self.weight_optimizer.state[parameter]["momentum_buffer"] = own

    def rebuild(self, space: CellSpace, partial: int, cells: int) -> nn.Module:
        """Go on with an untrained network; the old one is returned.

        Args:
            space: what competes from now on.
            partial: K of the partial channels.
            cells: of the network.
        """
        old = self.objective.network
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(self.seed, "weights", self.stage))
            self.objective.replace(cells_network(old).like(space, partial, cells))
        self.space = space
        return old

    def measure(
        self, edge_weights: NetworkEdgeWeights, limit: int | None = None, batch_statistics: bool = False
    ) -> float:
        """Quality of the shared weights on the architecture's part.

        Args:
            edge_weights: of the network.
            limit: the most images or words to measure on; None: all.
            batch_statistics: whether BatchNorms take the statistics of each batch.
        """
        with self._evaluation(batch_statistics):
            return self.objective.measure(self.on_device(edge_weights), limit)

    def reward(self, edge_weights: NetworkEdgeWeights, batch: Any) -> float:
        """How good the shared weights are on one batch; a higher number is better."""
        with self._evaluation():
            return self.objective.reward(batch, self.on_device(edge_weights))

    @contextlib.contextmanager
    def _evaluation(self, batch_statistics: bool = False) -> Iterator[None]:
        """No gradients, and BatchNorms in evaluation mode.

        A network that runs some of its operations only stays in training mode: what it runs has no running
        statistics of its own.
        """
        network = self.objective.network
        network.train(self.samples_operations or batch_statistics)
        # In training mode the running statistics move; who only asks leaves no trace in them.
        kept = {name: buffer.clone() for name, buffer in network.named_buffers()} if batch_statistics else {}
        # Batches of other sizes: compiled parts would be compiled again for each.
        with torch.no_grad(), eagerly():
            yield
            for name, buffer in kept.items():
                network.get_buffer(name).copy_(buffer)
        network.train()

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
            "memory": dict(self.memory),
            "decided": dict(self.alphas.decided),
            "stage": self._stage_dict(),
        }

    def _stage_dict(self) -> dict[str, Any] | None:
        """What the network of a later stage is built from."""
        if self.stage == 0:
            return None
        network = cells_network(self.objective.network)
        allowed = {kind: self.space.allowed_mask(kind) for kind in self.space.cells}
        shape = {"partial": network.settings.partial, "cells": network.size.cells}
        return {"number": self.stage, "allowed": allowed, **shape}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        stage = state["stage"]
        if stage is not None and stage["number"] != self.stage:
            self.stage = stage["number"]
            assert isinstance(self.space, CellSpace), "stages are of cells"
            self.rebuild(self.space.narrowed(stage["allowed"]), stage["partial"], stage["cells"])
            self.restart_weights()
        # Single numbers, such as a count of steps, stay on the host, where they are read.
        self.memory = {}
        for name, tensor in state["memory"].items():
            self.memory[name] = tensor if tensor.dim() == 0 else tensor.to(self.device)
        self.alphas.decided = {kind: tensor.to(self.device) for kind, tensor in state["decided"].items()}
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
