"""A cost that a search ends at: `--target 15ms`, `--target 100M`, `--target "4M params"`.

The loss of the architecture gets (proportional + integral) log(E / target), where E is the expected cost. Its
factor is found by the search itself, as a controller finds its output: the proportional part is the present
distance, the integral part what the distance was so far. That is the method of multipliers (Hestenes, 1969)
on log E = log target, so the factor may become negative: what costs less than it may is pushed up.

At the end the best chain near the target is read off exactly: the largest product of probabilities among all
chains that cost at most the target and at least 97% of it.
"""

import math
import re
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config import parse_count
from engine.errors import UserError
from oneshot.chains.best_choice import best_choice
from oneshot.chains.costs import CostKind, format_chain_cost
from oneshot.chains.genotype import ChainGenotype, chain_of
from oneshot.chains.layers import ChainCosts
from oneshot.chains.space import CHAIN, ChainSpace

WITHIN = 0.03  # share of the target that a found chain may be cheaper
# Of the factor: at 10% from the target it is 3, as strong as a usual loss or stronger.
PROPORTIONAL = 30.0
# What a search gathers that is off by 100% all the time; more than 5% off counts as 5%. Unbounded, the way
# from the first distance to the target would wind it up, and the search would shoot past.
INTEGRAL, MOST_GATHERED = 50.0, 0.05


class Target(NamedTuple):
    """What is aimed at."""

    of: CostKind
    value: float

    def __str__(self) -> str:
        return format_chain_cost(self.of, self.value)


def parse_target(text: str) -> Target:
    """`15ms`, `100M` (MACs) or `4M params`.

    Raises:
        ValueError: it is none of these. pydantic makes a validation error of it.
    """
    match = re.fullmatch(r"\s*(.*?)\s*(ms|macs|params|parameters)?\s*", text, re.IGNORECASE)
    number, unit = match.groups("macs") if match else ("", "")
    try:
        if unit.lower() == "ms":
            target = Target("latency", float(number))
        else:
            target = Target("macs" if unit.lower() == "macs" else "params", float(parse_count(number)))
    except ValueError:
        target = Target("macs", 0.0)
    if not 0 < target.value < math.inf:
        raise ValueError(f"'{text}' is not a target; write 15ms, 100M for MACs, or '4M params'")
    return target


class TargetReport(NamedTuple):
    """What was found against what was aimed at.

    Args:
        aimed: the target.
        found: the cost of the chain that was read off.
        expected: the expected cost of the last probabilities.
        strongest: the cost of the chain of the strongest operations.
        changed: layers in which the chain that was read off differs from that one.
        layers: searched layers.
        factor: what the search ended up weighing the cost with; None: it rewards networks for their cost.
    """

    aimed: Target
    found: float
    expected: float
    strongest: float
    changed: int
    layers: int
    factor: float | None

    def sentence(self) -> str:
        """For people."""
        of = self.aimed.of
        off = self.found / self.aimed.value - 1
        how = "the chain of the strongest operations"
        if self.changed:
            how = (
                f"the strongest operations would cost {format_chain_cost(of, self.strongest)}, so "
                f"{self.changed} of {self.layers} layers have another one"
            )
        found, expected = format_chain_cost(of, self.found), format_chain_cost(of, self.expected)
        return (
            f"target {self.aimed}: found {found} ({off:+.1%}); expected cost of the search {expected}; {how}"
        )

    def facts(self) -> dict[str, Any]:
        """For files."""
        return self._asdict() | {"of": self.aimed.of, "aimed": self.aimed.value}


class CostTarget:
    """The cost of the choices, the target, and the factor that leads the search there.

    Args:
        space: what is searched.
        costs: of the choices.
        target: what is aimed at.
        steps: of the architecture, in the whole search.
        device: where alphas are.

    Raises:
        UserError: no chain of the space costs that.
    """

    def __init__(
        self, space: ChainSpace, costs: ChainCosts, target: Target, steps: int, device: torch.device
    ):
        self.space, self.costs, self.target, self.steps = space, costs, target, steps
        allowed_EO = space.allowed_mask(CHAIN).numpy()
        least = costs.constant + np.where(allowed_EO, costs.layers_EO, np.inf).min(1).sum()
        most = costs.constant + np.where(allowed_EO, costs.layers_EO, -np.inf).max(1).sum()
        if not least <= target.value <= most:
            low, high = (format_chain_cost(target.of, value) for value in (least, most))
            raise UserError(
                f"No chain of space {space.name} costs {target}; --target can be {low} to {high} there."
            )
        self._cost_EO = torch.tensor(costs.layers_EO, dtype=torch.float32, device=device)
        # In the unit of the target, so that float32 is enough.
        self._cost_EO /= target.value
        # On the device: the factor follows each step without a look at any number.
        self.integral = torch.zeros((), device=device)

    def distance(self, probability_EO: Tensor) -> Tensor:
        """log(E / target), differentiable."""
        shares = probability_EO / probability_EO.sum(-1, keepdim=True)
        expected = self.costs.constant / self.target.value + (shares * self._cost_EO).sum()
        return expected.log()

    def relative_cost(self, columns: list[int]) -> float:
        """The cost of a chain as a share of the target; `columns`: of each searched layer's operation."""
        return (self.costs.constant + _cost(self.costs, np.array(columns))) / self.target.value

    def factor(self, distance: Tensor) -> Tensor:
        """What the distance is weighed with."""
        return PROPORTIONAL * distance.detach() + self.integral

    def follow(self, distance: Tensor) -> None:
        """Let the integral part follow one step of the architecture."""
        gathered = distance.detach().clamp(-MOST_GATHERED, MOST_GATHERED)
        self.integral += (INTEGRAL / self.steps) * gathered

    def read_off(self, probability_EO: Tensor) -> tuple[ChainGenotype, TargetReport]:
        """The best chain near the target, and what there is to say of it.

        Args:
            probability_EO: of each operation in each searched layer, at the end of the search.
        """
        space, costs, aimed = self.space, self.costs, self.target.value
        probability = probability_EO.detach().cpu().double().numpy()
        strongest = probability.argmax(1)
        with np.errstate(divide="ignore"):
            log_p = np.log(np.where(space.allowed_mask(CHAIN).numpy(), probability, 0))
        best = best_choice(
            log_p, costs.layers_EO, (1 - WITHIN) * aimed - costs.constant, aimed - costs.constant
        )
        distance = self.distance(probability_EO)
        report = TargetReport(
            aimed=self.target,
            found=costs.constant + _cost(costs, best),
            expected=aimed * float(distance.detach().exp()),
            strongest=costs.constant + _cost(costs, strongest),
            changed=int((best != strongest).sum()),
            layers=len(best),
            factor=float(self.factor(distance)),
        )
        return chain_of(space, [space.operations[column] for column in best]), report


def _cost(costs: ChainCosts, columns: NDArray[np.intp]) -> float:
    return float(costs.layers_EO[np.arange(len(columns)), columns].sum())
