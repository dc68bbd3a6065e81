"""ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware (2019, arXiv:1812.00332).

Settings of the released search on ImageNet. `proxyless` moves alphas along a gradient (the paper's
Proxyless-G), `proxyless_r` by REINFORCE on whole networks (Proxyless-R).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.command.progress import progress as progress_bar
from engine.seed import torch_generator
from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import BinaryGates, Relaxation
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.chains.operation import SKIP
from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.sampled.architecture import Architecture, as_edge_weights
from oneshot.methods.sampled.path_adam import PathAdam
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState

IMAGENET_SGD = WeightSgd(lr=0.025, lr_min=0.0, nesterov=True, weight_decay=4e-5, clip_norm=None)
NO_MOMENTUM = Adam(lr=1e-3, betas=(0.0, 0.999), weight_decay=0.0)
# Ours, for small images: minutes instead of days, so that rates are higher.
FAST: dict[str, Any] = {"epochs": 40, "batch_size": 64, "sgd": {"lr": 0.1}, "geometry": {"lr": 0.01}}


class Proxyless(Method):
    """Binary gates: a path is drawn for each step of the weights, two for each step of the architecture."""

    name: Literal["proxyless"] = "proxyless"
    relaxation: Relaxation = BinaryGates()
    geometry: Geometry = NO_MOMENTUM
    weights_first: bool = True
    # 40 epochs of warm-up and 120 of search; the code leaves alphas in the first of these alone, too.
    warmup_epochs: int = 41
    epochs: int = 160
    architecture_every: int = 5
    batch_size: int = 256
    sgd: WeightSgd = IMAGENET_SGD
    chains: ClassVar[str | None] = "proxyless"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "chain32": {**FAST, "architecture_every": 1, "warmup_epochs": 5},
        "recurrent": PUBLISHED["recurrent"] | {"warmup_epochs": 0, "architecture_every": 1},
    }

    def weigh_edges(
        self, space: SearchSpace, alphas: Alphas, progress: Progress, draws: torch.Generator
    ) -> dict[str, EdgeWeights]:
        """The gates of one draw; a layer whose active path is a skip does not move its alphas.

        That is so in the released code, not in the paper.
        """
        edge_weights = super().weigh_edges(space, alphas, progress, draws)
        for kind, weights in edge_weights.items():
            if SKIP not in space.operations or weights.expected_EO is None:
                continue
            still_E1 = weights.weight_EO.detach()[:, space.operations.index(SKIP), None] > 0
            edge_weights[kind] = weights._replace(
                weight_EO=torch.where(still_E1, weights.weight_EO.detach(), weights.weight_EO),
                expected_EO=torch.where(still_E1, weights.expected_EO.detach(), weights.expected_EO),
            )
        return edge_weights

    def optimizer(self, space: SearchSpace, alphas: Alphas) -> torch.optim.Optimizer:
        """Adam for the paths that took part in a step, which leaves the probabilities of the others alone."""
        if not isinstance(self.geometry, Adam) or not isinstance(self.relaxation, BinaryGates):
            return super().optimizer(space, alphas)
        adam = self.geometry
        rescales = self.relaxation.paths == "two"
        return PathAdam(alphas.all(), adam.lr, adam.betas, adam.weight_decay, rescales)


class Baseline(nn.Module):
    """What rewards are compared with: a moving average, which the first reward starts."""

    average: Tensor
    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Buffers, so that a checkpoint holds them.
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("started", torch.tensor(False))

    def follow(self, reward: float, rate: float) -> float:
        """Move the average towards a reward, and give it."""
        followed = self.average.lerp(torch.tensor(reward), rate)
        self.average.copy_(torch.where(self.started, followed, reward))
        self.started.fill_(True)
        return float(self.average)


class ProxylessR(Method):
    """REINFORCE: paths are drawn, and their probabilities learn from the accuracy that they reach."""

    name: Literal["proxyless_r"] = "proxyless_r"
    relaxation: Relaxation = BinaryGates()
    geometry: Geometry = NO_MOMENTUM
    weights_first: bool = True
    weights_alone: int = Field(41, ge=0, description="first epochs, in which only weights learn")
    updates: int = Field(300, ge=1, description="steps of the architecture after each later epoch")
    samples: int = Field(10, ge=1, description="networks that each of them draws and measures on one batch")
    baseline: float = Field(0.99, gt=0, le=1, description="rate at which the baseline follows rewards")
    tradeoff: float = Field(
        0.1, ge=0, description="with --target: exponent of target / cost in the reward of a network"
    )
    epochs: int = 160
    batch_size: int = 256
    sgd: WeightSgd = IMAGENET_SGD

    has_architecture_step: ClassVar[bool] = False
    can_aim: ClassVar[bool] = True
    chains: ClassVar[str | None] = "proxyless"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "chain32": {**FAST, "weights_alone": 5, "updates": 10},
        "recurrent": PUBLISHED["recurrent"] | {"weights_alone": 0},
    }

    def start(self, space: SearchSpace, seed: int, device: torch.device) -> Alphas:
        """Alphas, and the baseline beside them."""
        alphas = super().start(space, seed, device)
        alphas.controller = Baseline()
        return alphas

    def probabilities(self, space: SearchSpace, alphas: Alphas) -> dict[str, Tensor]:
        """Those of the paths."""
        found = {}
        for kind, alpha_EO in alphas.operations.items():
            allowed_EO = space.allowed_mask(kind, alpha_EO.device)
            found[kind] = self.relaxation.probabilities(alpha_EO, allowed_EO).detach().cpu()
        return found

    def after_epoch(self, state: SearchState) -> None:
        """The steps of the architecture."""
        epoch, optimizer = state.progress.epoch, state.architecture_optimizer
        if epoch < self.weights_alone:
            return
        assert optimizer is not None
        batches = state.objective.reward_batches(epoch)
        with progress_bar("architecture", self.updates) as advance:
            for step in range(self.updates):
                # From epoch and step, so that a resumed search draws the same.
                draws = torch_generator("cpu", state.seed, "reinforce", epoch, step)
                loss = self._loss(state, draws, next(batches))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                advance("")

    def _loss(self, state: SearchState, draws: torch.Generator, batch: Any) -> Tensor:
        """Minus the mean of (reward - baseline) log p over networks that are drawn."""
        baseline = state.alphas.controller
        assert isinstance(baseline, Baseline)
        rewards, log_probabilities = [], []
        for _ in range(self.samples):
            architecture, log_p = self._draw(state, draws)
            reward = state.reward(as_edge_weights(state.space, architecture), batch)
            if state.target is not None:
                (pairs,) = architecture.values()
                reward *= state.target.relative_cost([column for _, column in pairs]) ** -self.tradeoff
            rewards.append(reward)
            log_probabilities.append(log_p)
        # As in the code: the baseline follows first, and nearly to the present mean.
        level = baseline.follow(sum(rewards) / len(rewards), self.baseline)
        loss = torch.zeros((), device=state.device)
        for reward, log_p in zip(rewards, log_probabilities, strict=True):
            loss = loss - (reward - level) * log_p / self.samples
        return loss

    def _draw(self, state: SearchState, draws: torch.Generator) -> tuple[Architecture, Tensor]:
        """A network, and the logarithm of its probability."""
        architecture, log_p = {}, torch.zeros((), device=state.device)
        for kind, alpha_EO in state.alphas.operations.items():
            allowed_EO = state.space.allowed_mask(kind, alpha_EO.device)
            probability_EO = self.relaxation.probabilities(alpha_EO, allowed_EO)
            drawn_E1 = torch.multinomial(probability_EO.detach().cpu(), 1, generator=draws)
            log_p = log_p + probability_EO.gather(1, drawn_E1.to(alpha_EO.device)).log().sum()
            architecture[kind] = tuple(enumerate(drawn_E1[:, 0].tolist()))
        return architecture, log_p
