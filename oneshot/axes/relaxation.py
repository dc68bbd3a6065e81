"""Relaxations: from the parameters of a cell's edges to the weights of their operations.

Each knows how its parameters start, which probabilities they stand for, and which edge weights a network gets
in one forward pass. `allowed_EO` are booleans: which operation competes on which edge.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.compute.device import send, send_together
from engine.config import Config
from oneshot.axes.dirichlet import GammaNoise, dirichlet, gamma_noise
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress


class Softmax(Config):
    """DARTS (2019, arXiv:1806.09055): logits that start near 0, softmax over the operations of an edge."""

    name: Literal["softmax"] = "softmax"
    samples_operations: ClassVar[bool] = False  # whether only some operations run in a forward pass
    sums_to_one: ClassVar[bool] = True  # whether the weights of an edge do
    steps_differ: ClassVar[bool] = False  # whether the weights differ from step to step
    smooth: ClassVar[bool] = True  # whether the weights have a second derivative in the parameters

    def start(self, allowed_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Parameters (E, O) before the first step."""
        # Nearly equal operations, with a little noise that decides ties.
        return 1e-3 * torch.randn(allowed_EO.shape, generator=generator)

    def probabilities(self, alpha_EO: Tensor, allowed_EO: Tensor) -> Tensor:
        """(E, O); rows sum to 1; 0 where an operation does not compete."""
        # Minus infinity becomes a probability of exactly 0, with no gradient.
        return alpha_EO.masked_fill(~allowed_EO, -torch.inf).softmax(-1)

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """The edge weights of one forward pass.

        What was drawn on the device is in `active_EO`, and not in `active`: `read_active` reads that for all
        kinds of cell at once.

        Args:
            draws: a generator on CPU; the same state draws the same, on every device.
        """
        return EdgeWeights(self.probabilities(alpha_EO, allowed_EO))

    def over_edges(self, beta_E: Tensor) -> Tensor:
        """Weights of the edges that enter one node."""
        return beta_E.softmax(-1)


class Simplex(Softmax):
    """GAEA (2021, arXiv:2004.07802): the parameters are the probabilities themselves, uniform at first."""

    name: Literal["simplex"] = "simplex"  # type: ignore[assignment]

    def start(self, allowed_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform over the operations that compete."""
        return allowed_EO / allowed_EO.sum(-1, keepdim=True)

    def probabilities(self, alpha_EO: Tensor, allowed_EO: Tensor) -> Tensor:
        """The parameters."""
        return alpha_EO

    def over_edges(self, beta_E: Tensor) -> Tensor:
        """The parameters."""
        return beta_E


class GumbelHard(Softmax):
    """GDAS (2019, arXiv:1910.04465): one operation an edge, drawn by the Gumbel-max trick.

    Gradients pass straight through. Operations that were not drawn do not run; their weights, of value 0, are
    added to the edge's output, which gives them a gradient.
    """

    name: Literal["gumbel_hard"] = "gumbel_hard"  # type: ignore[assignment]
    samples_operations: ClassVar[bool] = True
    tau_start: float = Field(10.0, gt=0, description="temperature in the first epoch")
    tau_end: float = Field(0.1, gt=0, description="temperature in the last epoch")

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """One drawn operation an edge."""
        gumbel_EO = gumbel_noise(alpha_EO, draws)
        alpha_EO = alpha_EO.masked_fill(~allowed_EO, -torch.inf)
        tau = progress.between(self.tau_start, self.tau_end)
        return self.given(alpha_EO, gumbel_EO, tau)

    def given(self, alpha_EO: Tensor, gumbel_EO: Tensor, tau: float) -> EdgeWeights:
        """The edge weights for given Gumbel noise and temperature."""
        soft = ((alpha_EO.log_softmax(-1) + gumbel_EO) / tau).softmax(-1)
        drawn = soft.argmax(-1)
        # Of value one-hot; its gradient is that of the soft probabilities.
        hot = F.one_hot(drawn, soft.shape[-1])
        return self.one_hot(hot - soft.detach() + soft, hot, drawn)

    def one_hot(self, hard: Tensor, hot: Tensor, drawn: Tensor) -> EdgeWeights:
        """The edge weights `hard` (E, O), of value `hot`, where the operations `drawn` (E,) run."""
        # Of value 0. Adding it to the output gives those that were not drawn their gradient.
        others = hard.sum(-1) - hard.gather(-1, drawn[:, None])[:, 0]
        return EdgeWeights(hard, offset_E=others, active_EO=hot.bool())


class ReinMax(GumbelHard):
    """ReinMax (2023, arXiv:2304.08612): a straight-through gradient that is exact to second order.

    One operation an edge is drawn with its probability p; the gradient is that of 2 q - p / 2, where q is the
    mean of the draw and of softmax(alpha / tau).
    """

    name: Literal["reinmax"] = "reinmax"  # type: ignore[assignment]
    tau_start: float = Field(1.0, ge=1, description="temperature of q in the first epoch")
    tau_end: float = Field(1.0, ge=1, description="temperature of q in the last epoch")

    def given(self, alpha_EO: Tensor, gumbel_EO: Tensor, tau: float) -> EdgeWeights:
        """The edge weights for given Gumbel noise and temperature."""
        # The largest of noisy logits is a draw with the probabilities of softmax.
        drawn = (alpha_EO + gumbel_EO).argmax(-1)
        hot = F.one_hot(drawn, alpha_EO.shape[-1])
        q = ((alpha_EO / tau).softmax(-1) + hot).detach() / 2
        # Of value q, with the gradient of a softmax that has this value. What does not compete has no logit.
        competes = alpha_EO > -torch.inf
        shift = torch.where(competes, q.log() - alpha_EO.detach(), 0)
        towards = (alpha_EO + shift).softmax(-1)
        estimate = 2 * towards - alpha_EO.softmax(-1) / 2
        return self.one_hot(hot - estimate.detach() + estimate, hot, drawn)


class HardConcrete(Softmax):
    """PR-DARTS (2020, arXiv:2006.16537): a stretched, clamped gate for each operation.

    An edge keeps its `keep` best. The code of the paper drops gates at random before it picks, which the
    paper's text does not say.
    """

    name: Literal["hard_concrete"] = "hard_concrete"  # type: ignore[assignment]
    samples_operations: ClassVar[bool] = True
    low: float = Field(-0.1, lt=0, description="left end of the stretched interval")
    high: float = Field(1.1, gt=1, description="its right end")
    keep: int = Field(2, ge=1, description="operations that an edge keeps")
    dropout: float = Field(
        0.4, ge=0, lt=1, description="chance that a gate counts as 1 less when the best are picked"
    )
    tau_start: float = Field(1.0, gt=0, description="temperature in the first epoch")
    tau_end: float = Field(0.1, gt=0, description="temperature in the last epoch")

    def tau(self, progress: Progress) -> float:
        """Temperature of an epoch."""
        return progress.between(self.tau_start, self.tau_end)

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """The `keep` best gates of each edge; ties are broken at random."""
        shape = alpha_EO.shape
        uniform = torch.rand(shape, generator=draws, dtype=alpha_EO.dtype)
        rates = torch.full(shape, self.dropout, dtype=alpha_EO.dtype)
        dropped = torch.bernoulli(rates, generator=draws)
        order = torch.randperm(shape[1], generator=draws)
        uniform, dropped, order = send_together([uniform, dropped, order], alpha_EO.device)
        alpha_EO = alpha_EO.masked_fill(~allowed_EO, -torch.inf)
        # 2 less puts an operation that does not compete behind every other, a dropped one (1 less) included.
        dropped_EO = dropped + ~allowed_EO * 2.0
        return self.given(alpha_EO, uniform, dropped_EO, order, self.tau(progress))

    def given(
        self, alpha_EO: Tensor, uniform_EO: Tensor, dropped_EO: Tensor, order_O: Tensor, tau: float
    ) -> EdgeWeights:
        """The edge weights for given draws.

        Args:
            uniform_EO: in (0, 1), the noise of each gate.
            dropped_EO: how much is subtracted from a gate when the best are picked.
            order_O: a permutation of the operations; of equal gates the one that comes first is picked.
        """
        gate = torch.sigmoid((alpha_EO + uniform_EO.log() - (1 - uniform_EO).log()) / tau)
        # Stretched beyond [0, 1] and clamped: gates are exactly 0 or 1 with some probability.
        gate = (gate * (self.high - self.low) + self.low).clamp(0, 1)
        # topk of permuted columns: of equal gates, of which clamping makes many, a random one comes first.
        ranked = (gate - dropped_EO).detach()[:, order_O]
        picked = order_O[ranked.topk(self.keep, -1).indices]
        # 1 where picked; the second term has the gate's gradient and no value.
        hot = torch.zeros_like(gate).scatter(-1, picked, 1.0)
        return EdgeWeights(hot - gate.detach() + gate, active_EO=hot.bool())

    def active_probability(self, alpha_EO: Tensor, tau: float) -> Tensor:
        """Probability (E, O) that a gate is not 0."""
        # The stretched gate is above 0 where the gate before it is above -low / (high - low).
        # A single number of the host goes to a GPU with the kernel, without a copy.
        stretch = torch.tensor(-self.low / self.high, dtype=alpha_EO.dtype)
        return torch.sigmoid(alpha_EO - tau * torch.log(stretch))


class GumbelSoft(Softmax):
    """The concrete distribution: softmax((alpha + Gumbel noise) / temperature), in which all operations run.

    SNAS (2019, arXiv:1812.09926), with a temperature that falls linearly; FBNet (2019, arXiv:1812.03443),
    where every epoch multiplies it by the same factor.
    """

    name: Literal["gumbel_soft"] = "gumbel_soft"  # type: ignore[assignment]
    steps_differ: ClassVar[bool] = True
    tau_start: float = Field(1.0, gt=0, description="temperature that the schedule starts from")
    tau_end: float = Field(0.03, gt=0, description="temperature in the last epoch, where it falls linearly")
    tau_factor: float | None = Field(
        None, gt=0, le=1, description="factor of the temperature in each epoch; none: it falls linearly"
    )
    mean: float = Field(0.0, description="of the parameters before the first step")
    std: float = Field(1e-3, gt=0, description="of the parameters before the first step")

    def start(self, allowed_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Normal numbers."""
        return self.mean + self.std * torch.randn(allowed_EO.shape, generator=generator)

    def tau(self, progress: Progress) -> float:
        """Temperature of an epoch."""
        if self.tau_factor is not None:
            return self.tau_start * self.tau_factor**progress.epoch
        # As in SNAS's code, whose schedule makes a step before the first epoch and ends at `tau_end`.
        return self.tau_start + (self.tau_end - self.tau_start) * (progress.epoch + 1) / progress.epochs

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """All operations, weighted by one draw."""
        noise_EO = gumbel_noise(alpha_EO, draws)
        return self.given(alpha_EO.masked_fill(~allowed_EO, -torch.inf), noise_EO, self.tau(progress))

    def given(self, alpha_EO: Tensor, gumbel_EO: Tensor, tau: float) -> EdgeWeights:
        """The edge weights for given Gumbel noise and temperature."""
        return EdgeWeights(((alpha_EO + gumbel_EO) / tau).softmax(-1))


class BinaryGates(Softmax):
    """ProxylessNAS (2019, arXiv:1812.00332): one path an edge is active, drawn from softmax(alpha).

    A step of the weights runs the active path alone. A step of the architecture draws two paths, makes one of
    them active by their own softmax, and runs both: the gradient of the gates is that of this softmax of two.
    The released code's other mode, `all`, draws one and runs all.
    """

    name: Literal["binary_gates"] = "binary_gates"  # type: ignore[assignment]
    samples_operations: ClassVar[bool] = True
    paths: Literal["two", "all"] = Field("two", description="that run in a step of the architecture")

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """One active path an edge."""
        alpha_EO = alpha_EO.masked_fill(~allowed_EO, -torch.inf)
        # The largest of alpha plus Gumbel noise is a draw from softmax(alpha), the two largest are two draws
        # without replacement. The host waits for nothing.
        ranked_EO = alpha_EO.detach() + gumbel_noise(alpha_EO, draws)
        # The weights' step needs no gradient of alphas, so nothing but the active path has to run.
        if not torch.is_grad_enabled():
            hot = F.one_hot(ranked_EO.argmax(-1), ranked_EO.shape[-1])
            return EdgeWeights(hot.to(alpha_EO.dtype), active_EO=hot.bool())
        if self.paths == "all":
            every = torch.arange(alpha_EO.shape[1], device=alpha_EO.device).expand(alpha_EO.shape)
            return self.given(alpha_EO, every, ranked_EO.argmax(-1, keepdim=True))
        pair_E2 = ranked_EO.topk(2, -1).indices
        # Which of the two is active is a draw of its own, from their own softmax.
        of_pair_E2 = (alpha_EO.detach() + gumbel_noise(alpha_EO, draws)).gather(1, pair_E2)
        drawn_E1 = pair_E2.gather(1, of_pair_E2.argmax(-1, keepdim=True))
        return self.given(alpha_EO, pair_E2, drawn_E1)

    def given(self, alpha_EO: Tensor, paths_EK: Tensor, drawn_E1: Tensor) -> EdgeWeights:
        """The edge weights for given draws.

        Args:
            alpha_EO: minus infinity where an operation does not compete.
            paths_EK: the columns of the paths that run.
            drawn_E1: the column of the active one.
        """
        among_EK = alpha_EO.gather(1, paths_EK).softmax(-1)
        soft_EO = torch.zeros_like(alpha_EO).scatter(1, paths_EK, among_EK)
        hot_EO = torch.zeros_like(alpha_EO).scatter(1, drawn_E1, 1.0)
        active_EO = None
        if paths_EK.shape[1] < alpha_EO.shape[1]:
            active_EO = torch.zeros_like(alpha_EO, dtype=torch.bool).scatter(1, paths_EK, True)
        # Of value 0 or 1; the gradient is that of the softmax over the paths that run.
        weight_EO = hot_EO + (soft_EO - soft_EO.detach())
        return EdgeWeights(weight_EO, expected_EO=soft_EO, active_EO=active_EO)


def gumbel_noise(like: Tensor, draws: torch.Generator) -> Tensor:
    """Gumbel noise of the shape of `like`, drawn on CPU and moved to its device."""
    # Minus the logarithm of an exponential variable is a Gumbel variable.
    noise = -torch.empty(like.shape, dtype=like.dtype).exponential_(generator=draws).log()
    return send(noise, like.device)


class Dirichlet(Softmax):
    """DrNAS (2021, arXiv:2006.10355): the weights of an edge are a draw of Dirichlet(elu(alpha) + 1)."""

    name: Literal["dirichlet"] = "dirichlet"  # type: ignore[assignment]
    steps_differ: ClassVar[bool] = True
    smooth: ClassVar[bool] = False  # the pathwise gradient is known in first order only

    def mix(
        self, alpha_EO: Tensor, allowed_EO: Tensor, progress: Progress, draws: torch.Generator
    ) -> EdgeWeights:
        """One draw, with pathwise gradients."""
        return self.given(alpha_EO, allowed_EO, gamma_noise(alpha_EO, draws))

    def given(self, alpha_EO: Tensor, allowed_EO: Tensor, noise: GammaNoise) -> EdgeWeights:
        """The edge weights for given noise."""
        drawn_EO = dirichlet(F.elu(alpha_EO) + 1, noise)
        # As released: drawn over all operations, then divided by the sum of those that compete.
        drawn_EO = torch.where(allowed_EO, drawn_EO, 0)
        return EdgeWeights(drawn_EO / drawn_EO.sum(-1, keepdim=True).clamp_min(1e-30))


class Sigmoid(Softmax):
    """FairDARTS (2020, arXiv:1911.12126): each operation has a weight in (0, 1) of its own, 0.5 at first."""

    name: Literal["sigmoid"] = "sigmoid"  # type: ignore[assignment]
    sums_to_one: ClassVar[bool] = False

    def start(self, allowed_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros."""
        return torch.zeros(allowed_EO.shape)

    def probabilities(self, alpha_EO: Tensor, allowed_EO: Tensor) -> Tensor:
        """(E, O); 0 where an operation does not compete."""
        return torch.where(allowed_EO, alpha_EO.sigmoid(), 0)


Relaxation = Annotated[
    Softmax | Simplex | GumbelHard | HardConcrete | GumbelSoft | BinaryGates | ReinMax | Dirichlet | Sigmoid,
    Field(discriminator="name"),
]
