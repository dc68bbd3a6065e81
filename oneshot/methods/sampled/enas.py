"""ENAS: Efficient Neural Architecture Search via Parameter Sharing (2018, arXiv:1802.03268).

The weights' steps train architectures that the controller draws; after each epoch the controller is trained
by REINFORCE on the accuracy that its architectures reach with the shared weights. The controller's settings
are those of NAS-Bench-201's search. The weights' are the original code's (its macro search on CIFAR-10), and
on NAS-Bench-201 that search's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.command.progress import progress as progress_bar
from engine.seed import derive, torch_generator
from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.sampled.architecture import Architecture, as_edge_weights, as_genotype
from oneshot.methods.sampled.controller import Controller
from oneshot.methods.sampled.random_ws import best_of
from oneshot.spaces.genotype import AnyGenotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class Enas(Method):
    """A controller draws architectures and learns from how well they do with shared weights."""

    name: Literal["enas"] = "enas"
    size: int = Field(32, ge=1, description="units of the controller's LSTM")
    layers: int = Field(2, ge=1, description="layers of the controller's LSTM")
    temperature: float = Field(5.0, gt=0, description="logits are divided by it")
    tanh: float = Field(2.5, gt=0, description="logits are limited to plus and minus this")
    lr: float = Field(
        1e-3, gt=0, description="the controller's learning rate (Adam, betas 0 and 0.999, epsilon 1e-3)"
    )
    entropy: float = Field(1e-4, ge=0, description="weight of the decisions' entropy in the reward")
    baseline: float = Field(
        0.99, ge=0, lt=1, description="decay of the moving average that rewards are compared with"
    )
    controller_steps: int = Field(50, ge=1, description="steps of the controller after each epoch")
    samples_a_step: int = Field(20, ge=1, description="architectures that each of them averages over")
    candidates: int = Field(100, ge=1, description="architectures drawn in the end, the best of which wins")
    weights_first: bool = True
    epochs: int = 310
    batch_size: int = 128
    sgd: WeightSgd = WeightSgd(
        lr=0.05, lr_min=5e-4, nesterov=True, weight_decay=2.5e-4, cosine_epochs=10, after_cosine="restart"
    )

    has_architecture_step: ClassVar[bool] = False
    # There the rate swings with a period of 20 epochs, and ends low.
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED | {
        "nasbench201": {"epochs": 250, "sgd": {"after_cosine": "swing"}}
    }

    def start(self, space: SearchSpace, seed: int, device: torch.device) -> Alphas:
        """The controller, on CPU: it is tiny and decides one thing at a time."""
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(seed, "controller"))
            # It replaces the tables of parameters.
            return Alphas({}, {}, Controller(space, self.size, self.layers, self.temperature, self.tanh))

    def optimizer(self, space: SearchSpace, alphas: Alphas) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(alphas.all(), self.lr, (0.0, 0.999), eps=1e-3)

    @torch.no_grad()
    def weigh_edges(
        self, space: SearchSpace, alphas: Alphas, progress: Progress, draws: torch.Generator
    ) -> dict[str, EdgeWeights]:
        """One architecture that the controller draws."""
        assert alphas.controller is not None
        architecture, _, _ = alphas.controller(draws)
        return as_edge_weights(space, architecture)

    def after_epoch(self, state: SearchState) -> None:
        """REINFORCE on validation batches."""
        controller, optimizer = state.alphas.controller, state.architecture_optimizer
        assert isinstance(controller, Controller) and optimizer is not None
        epoch = state.progress.epoch
        batches = state.objective.reward_batches(epoch)
        with progress_bar("controller", self.controller_steps) as advance:
            for step in range(self.controller_steps):
                # From epoch and step, so that a resumed search draws the same.
                draws = torch_generator("cpu", state.seed, "controller", epoch, step)
                loss = controller.average.new_zeros(())
                for _ in range(self.samples_a_step):
                    # Each architecture is rewarded on a batch of its own.
                    loss = loss + self._reinforce(state, controller, draws, next(batches))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                # As published for NAS-Bench-201.
                nn.utils.clip_grad_norm_(controller.parameters(), 5.0)
                optimizer.step()
                advance(f"mean reward {float(controller.average):.3f}")

    def _reinforce(
        self, state: SearchState, controller: Controller, draws: torch.Generator, batch: Any
    ) -> Tensor:
        """One architecture's part of the loss; its reward also moves the baseline."""
        # 1. The controller decides.
        architecture, log_probability, entropy = controller(draws)
        # 2. The shared weights tell how good that is. The entropy rewards a controller that still explores.
        reward = state.reward(as_edge_weights(state.space, architecture), batch)
        reward += self.entropy * entropy.item()
        # 3. The baseline follows, then the controller learns from the difference.
        controller.follow(reward, self.baseline)
        # The baseline lowers the variance of the gradient and leaves its mean.
        advantage = reward - float(controller.average)
        return -log_probability * advantage / self.samples_a_step

    def genotype(self, state: SearchState) -> AnyGenotype:
        """What the controller draws first."""
        return as_genotype(state.space, self._draw(state, 0))

    def final_genotype(self, state: SearchState) -> AnyGenotype:
        """The best by shared weights of some that the controller draws."""
        architectures = [self._draw(state, number) for number in range(self.candidates)]
        return as_genotype(state.space, best_of(state, architectures, 1, 10))

    @torch.no_grad()
    def _draw(self, state: SearchState, number: int) -> Architecture:
        """The `number`-th architecture that the controller of this epoch draws."""
        controller = state.alphas.controller
        assert controller is not None
        draws = torch_generator("cpu", state.seed, "drawn", state.progress.epoch, number)
        architecture, _, _ = controller(draws)
        return architecture
