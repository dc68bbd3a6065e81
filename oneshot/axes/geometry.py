"""How architecture parameters move along their gradient."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.config import Config
from engine.optim import computes_fused

Rows = tuple[slice, ...]  # slices of a parameter's last axis, each of which sums to 1 on the simplex


class Adam(Config):
    """Adam (2015, arXiv:1412.6980) on logits."""

    name: Literal["adam"] = "adam"
    lr: float = Field(3e-4, gt=0, description="learning rate")
    betas: tuple[float, float] = Field((0.5, 0.999), description="decay of the moments")
    weight_decay: float = Field(1e-3, ge=0, description="L2, added to the gradient")

    def build(self, parameters: list[Tensor], rows: list[Rows]) -> torch.optim.Optimizer:
        """The optimiser of the parameters; logits need no `rows`."""
        fused = computes_fused(parameters)
        return torch.optim.Adam(parameters, self.lr, self.betas, weight_decay=self.weight_decay, fused=fused)


class Exponentiated(Config):
    """GAEA (2021, arXiv:2004.07802): exponentiated gradient, which stays on the simplex.

    It has no weight decay and no momentum. Its floor is for operations: the released code has none for the
    weights of edges.
    """

    name: Literal["exponentiated"] = "exponentiated"
    lr: float = Field(0.1, gt=0, description="learning rate")
    floor: float = Field(
        1e-5,
        ge=0,
        lt=1,
        description="no operation's probability falls below this before they are divided by their sum",
    )

    def build(self, parameters: list[Tensor], rows: list[Rows]) -> torch.optim.Optimizer:
        """The optimiser of the parameters, whose `rows` are probabilities."""
        return ExponentiatedGradient(parameters, rows, self.lr, self.floor)


Geometry = Annotated[Adam | Exponentiated, Field(discriminator="name")]


def exponentiated_gradient(theta: Tensor, gradient: Tensor, lr: float, floor: float = 1e-5) -> Tensor:
    """theta (..., O) on the simplex, one step later.

    That is theta exp(-lr gradient), at least `floor`, divided by its sum. What is 0 does not compete and
    stays 0.
    """
    # Without a floor a probability that reaches 0 could never come back.
    theta = torch.where(theta > 0, (theta * torch.exp(-lr * gradient)).clamp_min(floor), 0)
    return theta / theta.sum(-1, keepdim=True)


class ExponentiatedGradient(torch.optim.Optimizer):
    """`exponentiated_gradient` for several parameters."""

    def __init__(self, parameters: list[Tensor], rows: list[Rows], lr: float, floor: float):
        # torch's Optimizer keeps settings in its groups, which a checkpoint holds.
        super().__init__(parameters, {"lr": lr, "floor": floor})
        self.rows = rows

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the parameters' `grad`."""
        for group in self.param_groups:
            lr = group["lr"]
            for theta, rows in zip(group["params"], self.rows, strict=True):
                # Weights of edges (E,) have no floor; operations (E, O) do.
                floor = group["floor"] if theta.ndim > 1 else 0.0
                # The entries of a row compete and sum to 1; every other row has a sum of its own.
                for row in rows:
                    gradient = theta.grad[..., row]
                    theta[..., row] = exponentiated_gradient(theta[..., row], gradient, lr, floor)
