"""Relaxations: from the parameters of a cell's edges to the weights of their operations.

Each knows how its parameters start, which probabilities they stand for, and what a network gets to mix in one
forward pass.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.config import Config
from oneshot.axes.edge_weights import Mixture


class At(NamedTuple):
    """Where a search is."""

    epoch: int
    epochs: int

    @property
    def passed(self) -> float:
        """Share of the epochs before this one: 0 at first, below 1 at last."""
        return self.epoch / self.epochs

    def between(self, start: float, end: float) -> float:
        """Linear from `start` in the first epoch to `end` in the last."""
        return start + (end - start) * self.epoch / max(1, self.epochs - 1)


class Softmax(Config):
    """DARTS (2019, arXiv:1806.09055): logits that start near 0, softmax over the operations of an edge."""

    name: Literal["softmax"] = "softmax"
    samples: ClassVar[bool] = False  # whether only some operations run

    def start(self, may_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Parameters (E, O) before the first step."""
        return 1e-3 * torch.randn(may_EO.shape, generator=generator)

    def probabilities(self, alpha_EO: Tensor, may_EO: Tensor) -> Tensor:
        """(E, O); rows sum to 1; 0 where an operation does not compete."""
        return alpha_EO.masked_fill(~may_EO, -torch.inf).softmax(-1)

    def mix(self, alpha_EO: Tensor, may_EO: Tensor, at: At, draw: torch.Generator) -> Mixture:
        """What one forward pass gets."""
        return Mixture(self.probabilities(alpha_EO, may_EO))

    def over_edges(self, beta_E: Tensor) -> Tensor:
        """Weights of the edges that enter one node."""
        return beta_E.softmax(-1)


class Simplex(Softmax):
    """GAEA (2021, arXiv:2004.07802): the parameters are the probabilities themselves, uniform at first."""

    name: Literal["simplex"] = "simplex"  # type: ignore[assignment]

    def start(self, may_EO: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform over the operations that compete."""
        return may_EO / may_EO.sum(-1, keepdim=True)

    def probabilities(self, alpha_EO: Tensor, may_EO: Tensor) -> Tensor:
        """The parameters."""
        return alpha_EO

    def over_edges(self, beta_E: Tensor) -> Tensor:
        """The parameters."""
        return beta_E


class GumbelHard(Softmax):
    """GDAS (2019, arXiv:1910.04465): one operation an edge, drawn by the Gumbel-max trick; gradients pass
    straight through.

    Operations that were not drawn do not run; their weights, of value 0, are added to the edge's output,
    which gives them a gradient.
    """

    name: Literal["gumbel_hard"] = "gumbel_hard"  # type: ignore[assignment]
    samples: ClassVar[bool] = True
    tau_start: float = Field(10.0, gt=0, description="temperature in the first epoch")
    tau_end: float = Field(0.1, gt=0, description="temperature in the last epoch")

    def mix(self, alpha_EO: Tensor, may_EO: Tensor, at: At, draw: torch.Generator) -> Mixture:
        """One drawn operation an edge."""
        noise = -torch.empty(alpha_EO.shape, dtype=alpha_EO.dtype).exponential_(generator=draw).log()
        return self.given(
            alpha_EO.masked_fill(~may_EO, -torch.inf),
            noise.to(alpha_EO.device),
            at.between(self.tau_start, self.tau_end),
        )

    def given(self, alpha_EO: Tensor, gumbel_EO: Tensor, tau: float) -> Mixture:
        """The same for given noise."""
        soft = ((alpha_EO.log_softmax(-1) + gumbel_EO) / tau).softmax(-1)
        chosen = soft.argmax(-1)
        hard = F.one_hot(chosen, soft.shape[-1]) - soft.detach() + soft
        others = hard.sum(-1) - hard.gather(-1, chosen[:, None])[:, 0]
        return Mixture(hard, tuple((o,) for o in chosen.tolist()), offset_E=others)


class HardConcrete(Softmax):
    """PR-DARTS (2020, arXiv:2006.16537): a stretched, clamped gate for each operation; an edge keeps its
    `keep` best.

    The code of the paper drops gates at random before it picks, which the paper's text does not say.
    """

    name: Literal["hard_concrete"] = "hard_concrete"  # type: ignore[assignment]
    samples: ClassVar[bool] = True
    low: float = Field(-0.1, lt=0, description="left end of the stretched interval")
    high: float = Field(1.1, gt=1, description="its right end")
    keep: int = Field(2, ge=1, description="operations that an edge keeps")
    dropout: float = Field(
        0.4, ge=0, lt=1, description="chance that a gate counts as 1 less when the best are picked"
    )
    tau_start: float = Field(1.0, gt=0, description="temperature in the first epoch")
    tau_end: float = Field(0.1, gt=0, description="temperature in the last epoch")

    def tau(self, at: At) -> float:
        """Temperature of an epoch."""
        return at.between(self.tau_start, self.tau_end)

    def mix(self, alpha_EO: Tensor, may_EO: Tensor, at: At, draw: torch.Generator) -> Mixture:
        """The `keep` best gates of each edge; ties are broken at random."""
        uniform = torch.rand(alpha_EO.shape, generator=draw, dtype=alpha_EO.dtype)
        dropped = torch.bernoulli(
            torch.full(alpha_EO.shape, self.dropout, dtype=alpha_EO.dtype), generator=draw
        )
        order = torch.randperm(alpha_EO.shape[1], generator=draw)
        device = alpha_EO.device
        alpha_EO = alpha_EO.masked_fill(~may_EO, -torch.inf)
        return self.given(
            alpha_EO, uniform.to(device), dropped.to(device) + ~may_EO * 2.0, order.to(device), self.tau(at)
        )

    def given(
        self, alpha_EO: Tensor, uniform_EO: Tensor, dropped_EO: Tensor, order_O: Tensor, tau: float
    ) -> Mixture:
        """The same for given draws."""
        gate = torch.sigmoid((alpha_EO + uniform_EO.log() - (1 - uniform_EO).log()) / tau)
        gate = (gate * (self.high - self.low) + self.low).clamp(0, 1)
        chosen = order_O[(gate - dropped_EO).detach()[:, order_O].topk(self.keep, -1).indices]
        hot = torch.zeros_like(gate).scatter(-1, chosen, 1.0)
        runs = tuple(tuple(sorted(row)) for row in chosen.tolist())
        return Mixture(hot - gate.detach() + gate, runs)

    def active(self, alpha_EO: Tensor, tau: float) -> Tensor:
        """Probability (E, O) that a gate is not 0."""
        return torch.sigmoid(
            alpha_EO
            - tau
            * torch.log(torch.tensor(-self.low / self.high, dtype=alpha_EO.dtype, device=alpha_EO.device))
        )


Relaxation = Annotated[Softmax | Simplex | GumbelHard | HardConcrete, Field(discriminator="name")]
