"""Adam on the paths that took part in a step (ProxylessNAS, 2019, arXiv:1812.00332)."""

from typing import Any

import torch
from torch import Tensor


class PathAdam(torch.optim.Optimizer):
    """Adam (2015, arXiv:1412.6980) on alphas (E, O), of which a step moves some.

    A row without gradient did not take part: it stays, and so do its moments. In other rows the alphas that
    have a gradient are shifted together after the step, so that the sum of their exponentials is what it was:
    the probabilities of paths that were not drawn do not change (section 3.2 of the paper).

    Args:
        parameters: (E, O) each.
        lr, betas, weight_decay: as of Adam.
        rescales: whether alphas are shifted.
    """

    EPSILON = 1e-8

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        rescales: bool,
    ):
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "rescales": rescales}
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the parameters' `grad`."""
        for group in self.param_groups:
            for alpha_EO in group["params"]:
                if alpha_EO.grad is not None:
                    self._move(alpha_EO, group)

    def _move(self, alpha_EO: Tensor, group: dict[str, Any]) -> None:
        state, grad_EO = self.state[alpha_EO], alpha_EO.grad
        assert grad_EO is not None
        if not state:
            state["steps"] = torch.zeros_like(alpha_EO[:, :1])
            state["first"], state["second"] = torch.zeros_like(alpha_EO), torch.zeros_like(alpha_EO)
        took_part_EO = grad_EO != 0
        rows_E1 = took_part_EO.any(-1, keepdim=True)
        grad_EO = grad_EO + group["weight_decay"] * alpha_EO
        one, two = group["betas"]
        state["steps"] += rows_E1
        first = torch.where(rows_E1, one * state["first"] + (1 - one) * grad_EO, state["first"])
        second = torch.where(rows_E1, two * state["second"] + (1 - two) * grad_EO**2, state["second"])
        state["first"].copy_(first)
        state["second"].copy_(second)
        # Where no step was made yet, these are 0 / 0; the row is left alone below.
        mean = first / (1 - one ** state["steps"])
        size = (second / (1 - two ** state["steps"])).sqrt() + self.EPSILON
        moved_EO = torch.where(rows_E1, alpha_EO - group["lr"] * mean / size, alpha_EO)
        if group["rescales"]:
            before = alpha_EO.masked_fill(~took_part_EO, -torch.inf).logsumexp(-1, keepdim=True)
            after = moved_EO.masked_fill(~took_part_EO, -torch.inf).logsumexp(-1, keepdim=True)
            moved_EO = torch.where(took_part_EO, moved_EO - (after - before), moved_EO)
        alpha_EO.copy_(moved_EO)
