"""A search under way: the network and the architecture's parameters, and one step of both."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.optim import set_learning_rate
from engine.seed import torch_generator
from oneshot.axes.penalty import Seen
from oneshot.axes.relaxation import At
from oneshot.bilevel import (
    Mixtures,
    dominant_eigenvalue,
    exact,
    first_order,
    momentum_buffers,
    second_order,
    weight_step,
)
from oneshot.methods.method import Alphas, Method, Sgd
from oneshot.objectives import Task
from oneshot.spaces.cells import CellSpace


@dataclass
class Costs:
    """What operations cost, for a loss that weighs it: (E, O) for each kind of cell, and the rest of the
    network."""

    edges: dict[str, Tensor] = field(default_factory=dict)
    constant: float = 0.0


class Searching:
    """Everything that changes during a search, and the step that changes it.

    Args:
        method: what it chooses on each axis.
        space: what it searches.
        task: network, loss and batches.
        seed: of the parameters' start and of what is drawn in each step.
        epochs: of the whole search.
        costs: what the operations cost, if a penalty asks for it.
    """

    def __init__(
        self, method: Method, space: CellSpace, task: Task, seed: int, epochs: int, costs: Costs | None = None
    ):
        self.method, self.space, self.task, self.seed, self.epochs = method, space, task, seed, epochs
        self.costs = costs or Costs()
        self.device = next(task.network.parameters()).device
        self.alphas: Alphas = method.start(space, seed, self.device)
        self.of_alphas = method.optimizer(space, self.alphas) if self.alphas.all() else None
        sgd = method.sgd
        weights = task.network.parameters()
        self.of_weights = torch.optim.SGD(
            weights, sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay, nesterov=sgd.nesterov
        )
        self.at = At(0, epochs)

    def step(self, number: int, train: Any, valid: Any) -> Tensor:
        """One search step, with the `number`-th pair of batches of this epoch. Returns the two losses
        (weights, architecture)."""
        rate = rate_of(self.method.sgd, self.at) * self.task.rate(train)
        set_learning_rate(self.of_weights, rate)
        learns = self.learning
        if self.method.level == "single":
            return self._both_at_once(number, train, learns)
        of_architecture = torch.zeros((), device=self.device)
        if learns and not self.method.weights_first:
            of_architecture = self.architecture_step(number, train, valid, rate)
        of_weights = self.weights_step(number, train)
        if learns and self.method.weights_first:
            of_architecture = self.architecture_step(number, train, valid, rate)
        return torch.stack([of_weights, of_architecture])

    @property
    def learning(self) -> bool:
        """Whether this epoch's steps move the architecture."""
        return self.method.learns and self.at.epoch >= self.method.warmup_epochs

    def mixtures(self, purpose: str, number: int = 0) -> Mixtures:
        """What the network gets, with the draws of this place in the search."""
        draw = torch_generator("cpu", self.seed, purpose, self.at.epoch, number)
        return self._here(self.method.mixtures(self.space, self.alphas, self.at, draw))

    def _here(self, mixtures: Mixtures) -> Mixtures:
        return {
            kind: mixture._replace(weight_EO=mixture.weight_EO.to(self.device))
            for kind, mixture in mixtures.items()
        }

    def weights_step(self, number: int, train: Any) -> Tensor:
        """One step of the weights; the architecture stays."""
        with torch.no_grad():
            mixtures = self.mixtures("weights", number)
        value = self.task.loss(self.task.for_weights(train), mixtures)
        weight_step(self.task.network, value, self.of_weights, self.method.sgd.clip_norm)
        return value.detach()

    def architecture_step(self, number: int, train: Any, valid: Any, rate: float) -> Tensor:
        """One step of the architecture; the weights stay."""
        network, loss, parameters = self.task.network, self.task.loss, self.alphas.all()

        def mixtures() -> Mixtures:
            return self.mixtures("architecture", number)

        if self.method.order == "first":

            def objective() -> Tensor:
                mixed = mixtures()
                return self.penalised(loss(valid, mixed), mixed)

            value, gradients = first_order(network, objective, parameters)
        else:
            ahead = second_order if self.method.order == "second" else exact
            inner = self.task.inner(self.method.sgd, rate, momentum_buffers(self.of_weights, network))
            value, gradients = ahead(network, loss, mixtures, self.penalised, parameters, train, valid, inner)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        assert self.of_alphas is not None
        self.of_alphas.step()
        return value

    def penalised(self, value: Tensor, mixtures: Mixtures) -> Tensor:
        """The validation loss with what the method adds to it."""
        seen = Seen(
            self.space,
            self.alphas.operations,
            dict(mixtures),
            self.method.relaxation,
            self.at,
            self.costs.edges,
            self.costs.constant,
        )
        for penalty in self.method.penalties:
            value = penalty(value, seen)
        return value

    def _both_at_once(self, number: int, batch: Any, learns: bool) -> Tensor:
        """Single level: one loss, one backward pass, one step of each."""
        mixtures = self.mixtures("weights", number)
        value = self.task.loss(self.task.for_weights(batch), mixtures)
        total = self.penalised(value, mixtures)
        for parameter in self.alphas.all():
            parameter.grad = None
        weight_step(self.task.network, total, self.of_weights, self.method.sgd.clip_norm)
        if learns and self.of_alphas is not None:
            self.of_alphas.step()
        return torch.stack([value.detach(), total.detach()])

    def measure(self, mixtures: Mixtures | None = None, limit: int | None = None) -> float:
        """Quality of the shared weights on the architecture's part: of the current mixture, or of the given
        one."""
        with self._judging():
            return self.task.measure(
                self.mixtures("measure") if mixtures is None else self._here(mixtures), limit
            )

    def reward(self, mixtures: Mixtures, batch: Any) -> float:
        """How well shared weights do on one batch, as a number of which more is better."""
        with self._judging():
            return self.task.reward(batch, self._here(mixtures))

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """No gradients, and running statistics, but for methods that sample: what they run has none of its
        own."""
        self.task.network.train(self.method.samples)
        with torch.no_grad():
            yield
        self.task.network.train()

    def eigenvalue(self, batch: Any) -> float:
        """The dominant eigenvalue of the validation loss's Hessian in the architecture's parameters, on one
        batch."""
        statistics = {name: buffer.clone() for name, buffer in self.task.network.named_buffers()}
        weights = {name: w.detach() for name, w in self.task.network.named_parameters()}

        def value() -> Tensor:
            return self.task.loss(batch, self.mixtures("hessian"), weights | statistics, twice=True)

        generator = torch_generator("cpu", self.seed, "eigenvector", self.at.epoch)
        return dominant_eigenvalue(value, self.alphas.all(), generator)

    def state(self) -> dict[str, Any]:
        """What a resumed search needs."""
        return {
            "network": self.task.network.state_dict(),
            "of_weights": self.of_weights.state_dict(),
            "alphas": [parameter.detach() for parameter in self.alphas.all()],
            "of_alphas": None if self.of_alphas is None else self.of_alphas.state_dict(),
            "task": self.task.state(),
            "controller": None if self.alphas.controller is None else self.alphas.controller.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state`."""
        self.task.network.load_state_dict(state["network"])
        self.of_weights.load_state_dict(state["of_weights"])
        with torch.no_grad():
            for parameter, value in zip(self.alphas.all(), state["alphas"], strict=True):
                parameter.copy_(value)
        if self.of_alphas is not None:
            self.of_alphas.load_state_dict(state["of_alphas"])
        self.task.load(state["task"])
        if self.alphas.controller is not None:
            self.alphas.controller.load_state_dict(state["controller"])


def rate_of(sgd: Sgd, at: At) -> float:
    """Learning rate of an epoch: a cosine from `lr` to `lr_min`, or several, each twice as long as the
    last."""
    start, length = 0, sgd.cosine_epochs or at.epochs
    while sgd.restart and at.epoch >= start + length:
        start, length = start + length, 2 * length
    passed = min((at.epoch - start) / length, 1.0)
    return sgd.lr_min + (sgd.lr - sgd.lr_min) * 0.5 * (1 + math.cos(math.pi * passed))
