"""A method at work: one step of the weights and of the architecture."""

from typing import Any

import torch
from torch import Tensor

from engine.compute.compiling import compile_parts
from engine.compute.graphs import GraphedStep, Graphs, graphed_step, steady
from engine.compute.precision import float32_as_exported
from engine.optim import computes_fused, set_learning_rate
from engine.seed import derive, torch_generator
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.axes.operation_costs import OperationCosts
from oneshot.axes.penalty import PenaltyInputs
from oneshot.axes.progress import Progress
from oneshot.bilevel import (
    BilevelProblem,
    all_gradients,
    clip_and_step,
    dominant_eigenvalue,
    exact,
    first_order,
    momentum_buffers,
    second_order,
    weight_gradients,
)
from oneshot.chains.space import CHAIN
from oneshot.chains.target import CostTarget, TargetReport
from oneshot.methods.method import Method
from oneshot.networks.search import CellsNetwork, cells_network
from oneshot.objectives.objective import Objective
from oneshot.spaces.cells import NOISE
from oneshot.spaces.genotype import AnyGenotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class Searcher:
    """A search: the state, and the step that changes it as the method says.

    Args:
        method: what is chosen on each axis.
        space: what is searched.
        objective: network, loss and batches.
        seed: of the parameters' start and of what is drawn in each step.
        epochs: of the whole search.
        costs: the costs of the operations; None if no penalty weighs them.
        target: the cost that a search of a chain ends at; None: any.
    """

    def __init__(
        self,
        method: Method,
        space: SearchSpace,
        objective: Objective,
        seed: int,
        epochs: int,
        costs: OperationCosts | None = None,
        target: CostTarget | None = None,
    ):
        self.method, self.epochs = method, epochs
        self.total_epochs = method.total_epochs(space, epochs)  # with what follows the search
        self.costs = costs or OperationCosts()
        weights, sgd = list(objective.network.parameters()), method.sgd
        alphas = method.start(space, seed, weights[0].device)
        self.state = SearchState(
            space=space,
            objective=objective,
            alphas=alphas,
            weight_optimizer=torch.optim.SGD(
                weights,
                sgd.lr,
                sgd.momentum,
                weight_decay=sgd.weight_decay,
                nesterov=sgd.nesterov,
                fused=computes_fused(weights),
            ),
            # A method without parameters has nothing to move.
            architecture_optimizer=method.optimizer(space, alphas) if alphas.all() else None,
            seed=seed,
            progress=Progress(0, epochs),
            samples_operations=method.samples_operations,
            target=target,
        )
        self.graph: GraphedStep | None = None  # launches steps that are all alike; None: they run eagerly

    def step(self, number: int, train: Any, valid: Any) -> Tensor:
        """One search step, with the `number`-th pair of batches of this epoch.

        Returns:
            (2,): the losses of the weights' step and of the architecture's.
        """
        state = self.state
        # The learning rate of this epoch, and of this batch's size.
        rate = self.method.learning_rate(state.progress) * state.objective.rate(train)
        set_learning_rate(state.weight_optimizer, rate)
        if self.graph is None:
            return self._move(number, rate, train, valid)

        def recorded(x: Tensor, y: Tensor, valid_x: Tensor, valid_y: Tensor) -> Tensor:
            return self._move(number, rate, (x, y), (valid_x, valid_y))

        # Schedules, penalties and rates are those of an epoch, so each epoch has a graph of its own.
        return self.graph.run((state.progress, rate), recorded, (*train, *valid))

    def use_graphs(self, graphs: Graphs) -> None:
        """Launch steps as graphs from now on, where that is wanted and possible."""
        state = self.state
        self.graph = graphed_step(graphs, state.device, self.varies())
        if self.graph is not None:
            steady(state.weight_optimizer, state.device)
            if state.architecture_optimizer is not None:
                steady(state.architecture_optimizer, state.device)

    def compile(self, strict: bool = False, backend: str = "inductor") -> None:
        """Let the network's parts run compiled from now on, where their shapes are fixed.

        Args:
            strict, backend: as `compile_parts` takes them.
        """
        why_not, network = self.varies(), self.state.objective.network
        if why_not is not None:
            print(f"the network is not compiled: {why_not}")
            return
        compile_parts(cells_network(network).compiled_parts(), strict, backend)

    def varies(self) -> str | None:
        """Why the steps of an epoch are not all alike, so that none can be recorded; None: they are."""
        if self.method.samples_operations:
            return f"method {self.method.name} draws in each step which operations run"
        if self.method.relaxation.steps_differ or self.method.steps_differ:
            return f"method {self.method.name} draws or counts in each step"
        if self.method.architecture_every > 1:
            return f"the architecture moves in one of {self.method.architecture_every} steps"
        if self.method.selection is not None:
            return "selection by perturbation starts the optimiser anew"
        if NOISE in self.state.space.operations:
            return "one of the operations is noise"
        if not isinstance(self.state.objective.network, CellsNetwork):
            return f"the network of space {self.state.space.name} changes from step to step"
        return None

    def _move(self, number: int, rate: float, train: Any, valid: Any) -> Tensor:
        """The step at a learning rate."""
        state, method = self.state, self.method
        if method.level == "single":
            return self._both_at_once(number, train)
        # Both levels in turn, each on its own batch; which comes first is the method's choice.
        architecture_loss = torch.zeros((), device=state.device)
        moves = self.moves_architecture and self._is_due(number)
        # DARTS moves the architecture first: it looks ahead to the weights' step that follows.
        if moves and not method.weights_first:
            architecture_loss = self._architecture_step(number, train, valid, rate)
        weights_loss = self._weights_step(number, train)
        if moves and method.weights_first:
            architecture_loss = self._architecture_step(number, train, valid, rate)
        return torch.stack([weights_loss, architecture_loss])

    @property
    def moves_architecture(self) -> bool:
        """Whether this epoch's steps move the architecture."""
        return self.method.has_architecture_step and not self.method.waits(self.state.progress)

    def begin_epoch(self, number: int) -> None:
        """Tell the search its epoch, on which schedules depend."""
        last = self.epochs - 1
        self.state.progress = Progress(min(number, last), self.epochs, max(0, number - last))
        self.method.before_epoch(self.state)

    def _is_due(self, number: int) -> bool:
        """Whether the architecture moves beside the `number`-th weight step of this epoch."""
        state, epoch = self.state, self.state.progress.epoch
        done = epoch * state.objective.steps(epoch) + number
        return (done + 1) % self.method.architecture_every == 0

    def edge_weights(self, purpose: str, number: int = 0) -> NetworkEdgeWeights:
        """The edge weights that the network gets.

        Args:
            purpose: what they are for, such as "weights".
            number: of the step in this epoch. Purpose, epoch and number seed what is drawn, so the same call
                draws the same.
        """
        state = self.state
        draws = self._draws(purpose, number)
        # Draws are made on CPU, so that a seed means the same on every device.
        found = self.method.weigh_edges(state.space, state.alphas, state.progress, draws)
        if NOISE in state.space.operations or any(weights.skip_dropout for weights in found.values()):
            seed = derive(state.seed, NOISE, purpose, state.progress.number, number)
            found = {kind: weights._replace(noise=seed) for kind, weights in found.items()}
        return state.on_device(found)

    def _draws(self, purpose: str, number: int) -> torch.Generator:
        """The generator on CPU of what a step of this epoch draws."""
        return torch_generator("cpu", self.state.seed, purpose, self.state.progress.number, number)

    def _weights_step(self, number: int, train: Any) -> Tensor:
        """One step of the weights; the architecture stays."""
        state, method, batch = self.state, self.method, self.state.objective.for_weights(train)
        # The architecture is a constant here: no gradient of alphas is computed.
        with torch.no_grad():
            edge_weights = self.edge_weights("weights", number)
        edge_weights = method.perturb(state, edge_weights, batch, self._draws("perturbation", number))
        # The loss of the mixed operations, as they are weighed now.
        value = state.objective.loss(batch, edge_weights)
        weight_gradients(state.objective.network, value, state.weight_optimizer)
        method.move_weights(state, edge_weights, batch, self._move_weights)
        return value.detach()

    def _move_weights(self) -> None:
        """Clip the weights' gradients, and move the weights along them."""
        clip_and_step(self.state.objective.network, self.state.weight_optimizer, self.method.sgd.clip_norm)

    def _architecture_step(self, number: int, train: Any, valid: Any, rate: float) -> Tensor:
        """One step of the architecture; the weights stay."""
        objective, parameters = self.state.objective, self.state.alphas.all()

        def edge_weights() -> NetworkEdgeWeights:
            return self.edge_weights("architecture", number)

        def penalised_loss() -> Tensor:
            weights = edge_weights()
            return self.penalised(objective.loss(valid, weights), weights)

        if self.method.order == "first" and self.method.needs_validation_gradients:
            value, gradients, of_weights = all_gradients(objective.network, penalised_loss, parameters)
            self.method.see_validation_gradients(self.state, of_weights)
        elif self.method.order == "first":
            value, gradients = first_order(objective.network, penalised_loss, parameters)
        else:
            # The look ahead repeats the optimiser's step, momentum included.
            buffers = momentum_buffers(self.state.weight_optimizer, objective.network)
            problem = BilevelProblem(
                network=objective.network,
                loss=objective.loss,
                edge_weights=edge_weights,
                penalised=self.penalised,
                alphas=parameters,
                train=train,
                valid=valid,
                step=objective.virtual_step(self.method.sgd, rate, buffers),
            )
            look_ahead = second_order if self.method.order == "second" else exact
            value, gradients = look_ahead(problem)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # Replaced, not added to: the optimiser has nothing left from the step before.
            parameter.grad = gradient
        assert self.state.architecture_optimizer is not None
        self._follow_target()
        self.state.architecture_optimizer.step()
        return value

    def penalised(self, value: Tensor, edge_weights: NetworkEdgeWeights) -> Tensor:
        """The validation loss with what the method adds to it."""
        inputs = PenaltyInputs(
            space=self.state.space,
            alphas=self.state.alphas.operations,
            edge_weights=edge_weights,
            relaxation=self.method.relaxation,
            progress=self.state.progress,
            costs=self.costs.edges,
            constant=self.costs.constant,
        )
        for penalty in self.method.penalties:
            value = penalty(value, inputs)
        target = self.state.target
        if target is not None:
            distance = self._distance(target)
            value = value + target.factor(distance) * distance
        return value

    def _distance(self, target: CostTarget) -> Tensor:
        """How far the expected cost is from the target."""
        # Of the probabilities, not of the weights in this step: a method that samples would make it noise.
        alpha_EO = self.state.alphas.operations[CHAIN]
        allowed_EO = self.state.space.allowed_mask(CHAIN, alpha_EO.device)
        return target.distance(self.method.relaxation.probabilities(alpha_EO, allowed_EO))

    def _follow_target(self) -> None:
        """Let the factor of the cost follow the distance of this step."""
        target = self.state.target
        if target is not None:
            with torch.no_grad():
                target.follow(self._distance(target))

    def final_genotype(self) -> tuple[AnyGenotype, TargetReport | None]:
        """What was found at the end, and where a cost was aimed at, how near it is."""
        state = self.state
        if state.target is None:
            return self.method.final_genotype(state), None
        found, report = state.target.read_off(self.method.probabilities(state.space, state.alphas)[CHAIN])
        # Without an architecture step along a gradient no loss weighed the cost.
        return found, report if self.method.has_architecture_step else report._replace(factor=None)

    def _both_at_once(self, number: int, batch: Any) -> Tensor:
        """Single level: one loss, one backward pass, one step of each."""
        objective, architecture_optimizer = self.state.objective, self.state.architecture_optimizer
        edge_weights = self.edge_weights("weights", number)
        value = objective.loss(objective.for_weights(batch), edge_weights)
        # One backward pass serves both, since penalties do not depend on the weights.
        total = self.penalised(value, edge_weights)
        # `weight_gradients` clears those of the weights only.
        for parameter in self.state.alphas.all():
            parameter.grad = None
        weight_gradients(objective.network, total, self.state.weight_optimizer)
        self._move_weights()
        if self.moves_architecture and architecture_optimizer is not None:
            self._follow_target()
            architecture_optimizer.step()
        return torch.stack([value.detach(), total.detach()])

    def measure(self, limit: int | None = None) -> float:
        """Quality of the current edge weights on the architecture's part."""
        with torch.no_grad():
            edge_weights = self.edge_weights("measure")
        return self.state.measure(edge_weights, limit)

    @float32_as_exported()
    def eigenvalue(self, batch: Any) -> float:
        """The dominant eigenvalue of the validation loss's Hessian in the architecture's parameters.

        Args:
            batch: of the architecture's part.
        """
        state, network = self.state, self.state.objective.network
        # Copies: measuring leaves no trace in the statistics and computes no gradient of weights.
        statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
        weights = {name: w.detach() for name, w in network.named_parameters()}

        def value() -> Tensor:
            edge_weights = self.edge_weights("hessian")
            return state.objective.loss(batch, edge_weights, weights | statistics, create_graph=True)

        generator = torch_generator("cpu", state.seed, "eigenvector", state.progress.epoch)
        return dominant_eigenvalue(value, state.alphas.all(), generator)
