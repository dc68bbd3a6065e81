"""What is added to the validation loss of the architecture step."""

import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.config import Config, Count
from oneshot.axes.edge_weights import Mixture
from oneshot.axes.relaxation import At, HardConcrete
from oneshot.spaces.cells import CellSpace


class Seen(NamedTuple):
    """What a penalty may look at: per kind of cell the parameters and what they became in this step; where a
    cost is weighed, what each operation (E, O) and everything else of the final network cost."""

    space: CellSpace
    alphas: dict[str, Tensor]
    mixtures: dict[str, Mixture]
    relaxation: Config
    at: At
    costs: dict[str, Tensor]
    constant: float = 0.0


class BetaDecay(Config):
    """beta-DARTS (2022, arXiv:2203.01665): the mean over edges of logsumexp of the logits, weighted more in
    each epoch."""

    name: Literal["beta_decay"] = "beta_decay"
    end: float = Field(50.0, ge=0, description="weight after the last epoch; it grows linearly from 0")

    def __call__(self, loss: Tensor, seen: Seen) -> Tensor:
        """The loss with the penalty."""
        logits = [
            alpha.masked_fill(~seen.space.may(kind, alpha.device), -torch.inf)
            for kind, alpha in seen.alphas.items()
        ]
        return loss + self.end * seen.at.passed * torch.cat([alpha.logsumexp(-1) for alpha in logits]).mean()


class PathDepth(Config):
    """PR-DARTS (2020, arXiv:2006.16537): skip connections, the other operations and pools compete in groups;
    deep cells are rewarded.

    A group is active with the mean probability of those of its gates that were kept. A group of which none
    was kept counts as 0.
    """

    name: Literal["path_depth"] = "path_depth"
    skip: float = Field(0.01, ge=0, description="weight of the activity of skip connections above `free`")
    others: float = Field(
        0.005, ge=0, description="weight of that of convolutions and none, and of that of pools"
    )
    path: float = Field(0.005, ge=0, description="reward for convolutions on the path through all nodes")
    free: float = Field(0.2, ge=0, description="activity that costs nothing")

    def __call__(self, loss: Tensor, seen: Seen) -> Tensor:
        """The loss with the penalty."""
        relaxation = seen.relaxation
        assert isinstance(relaxation, HardConcrete), "Method refuses other relaxations"
        groups, paths = [], []
        for kind, alpha_EO in seen.alphas.items():
            runs = seen.mixtures[kind].runs
            assert runs is not None
            kept = torch.tensor(
                [[o in row for o in range(alpha_EO.shape[1])] for row in runs], device=alpha_EO.device
            )
            active = relaxation.active(alpha_EO, relaxation.tau(seen.at))
            groups.append(
                torch.stack(
                    [_mean(active, kept & of_group) for of_group in self._groups(seen.space, alpha_EO.device)]
                )
            )
            paths.append(self._path(seen.space, active, kept))
        above = F.relu(torch.stack(groups).mean(0) - self.free)
        return (
            loss
            + self.skip * above[0]
            + self.others * (above[1] + above[2])
            - self.path * torch.stack(paths).mean()
        )

    def _groups(self, space: CellSpace, device: torch.device) -> list[Tensor]:
        number = [0 if name == "skip_connect" else 2 if "pool" in name else 1 for name in space.operations]
        return [torch.tensor([n == group for n in number], device=device) for group in range(3)]

    def _path(self, space: CellSpace, active: Tensor, kept: Tensor) -> Tensor:
        convolution = torch.tensor(["conv" in name for name in space.operations], device=active.device)
        product = active.new_ones(())
        for e, (source, target) in enumerate(space.edges):
            if source == target - 1 and source >= space.inputs - 1 and bool((kept[e] & convolution).any()):
                product = product * _mean(active[e], kept[e] & convolution)
        return product


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)


class Entropy(Config):
    """GAEA (2021, arXiv:2004.07802), optional there: gamma times the sum of theta log(theta O), 0 for the
    uniform distribution."""

    name: Literal["entropy"] = "entropy"
    gamma: float = Field(
        -1e-3, description="weight; negative drives towards one operation an edge, positive away from it"
    )

    def __call__(self, loss: Tensor, seen: Seen) -> Tensor:
        """The loss with the penalty."""
        theta = torch.cat([mixture.weight_EO for mixture in seen.mixtures.values()])
        return (
            loss + self.gamma * (torch.special.xlogy(theta, theta) + theta * math.log(theta.shape[1])).sum()
        )


class Cost(Config):
    """Losses that weigh the expected cost E of the mixture (ProxylessNAS, 2019, arXiv:1812.00332; FBNet,
    2019, arXiv:1812.03443)."""

    name: Literal["cost"] = "cost"
    of: Literal["macs", "params", "latency"] = Field(
        "macs", description="what an operation costs in the final network"
    )
    table: Path | None = Field(
        None,
        description=(
            "for latency: a JSON file, operation -> cost on any edge, or kind of cell -> edges -> operations"
        ),
    )
    form: Literal["power", "add", "fbnet"] = Field(
        "power",
        description=(
            "power: scale CE (log E / log ref)^exponent; add: CE + scale (E - ref) / ref; fbnet: scale CE "
            "log(E)^exponent"
        ),
    )
    ref: Count = Field(
        600_000_000, ge=2, description="the cost to aim at, in the table's unit for latency; fbnet has none"
    )
    scale: float | None = Field(None, gt=0, description="none: 0.2 (power, fbnet), 0.1 (add)")
    exponent: float | None = Field(None, gt=0, description="none: 0.3 (power), 0.6 (fbnet)")

    def expected(self, seen: Seen) -> Tensor:
        """The constant and the sum over cells, edges and operations of weight times cost.

        In the DARTS space all 14 edges of a cell count, of which 8 survive: E is more than the found network
        will cost.
        """
        return (
            seen.constant
            + torch.stack(
                [(seen.mixtures[kind].weight_EO * cost_EO).sum() for kind, cost_EO in seen.costs.items()]
            ).sum()
        )

    def __call__(self, loss: Tensor, seen: Seen) -> Tensor:
        """The loss with the penalty."""
        cost = self.expected(seen)
        match self.form:
            case "power":
                return (
                    (self.scale or 0.2)
                    * loss
                    * (cost.log() / torch.log(torch.tensor(float(self.ref)))) ** (self.exponent or 0.3)
                )
            case "add":
                return loss + (self.scale or 0.1) * (cost - self.ref) / self.ref
        return (self.scale or 0.2) * loss * cost.log() ** (self.exponent or 0.6)


Penalty = Annotated[BetaDecay | PathDepth | Entropy | Cost, Field(discriminator="name")]
