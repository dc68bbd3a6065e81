"""What is added to the validation loss of the architecture step."""

import functools
import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.compute.device import send_together
from engine.config import Config, Count
from oneshot.axes.edge_weights import EdgeWeights, NetworkEdgeWeights
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import HardConcrete
from oneshot.spaces.search_space import SearchSpace


class PenaltyInputs(NamedTuple):
    """What a penalty may look at.

    Args:
        space: what is searched.
        alphas: the parameters (E, O) of each kind of cell.
        edge_weights: what they became in this step.
        relaxation: how they became that.
        progress: where the search is.
        costs: where a cost is weighed, what each operation costs, (E, O) for each kind of cell.
        constant: what everything else of the final network costs.
    """

    space: SearchSpace
    alphas: dict[str, Tensor]
    edge_weights: NetworkEdgeWeights
    relaxation: Config
    progress: Progress
    costs: dict[str, Tensor]
    constant: float = 0.0


class BetaDecay(Config):
    """beta-DARTS (2022, arXiv:2203.01665): the mean over edges of logsumexp of the logits.

    It is weighted more in each epoch.
    """

    name: Literal["beta_decay"] = "beta_decay"
    end: float = Field(50.0, ge=0, description="weight after the last epoch; it grows linearly from 0")

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        sums = []
        for kind, alpha_EO in inputs.alphas.items():
            allowed_EO = inputs.space.allowed_mask(kind, alpha_EO.device)
            # An operation that does not compete must not enter the sum.
            sums.append(alpha_EO.masked_fill(~allowed_EO, -torch.inf).logsumexp(-1))
        # beta-DARTS raises the weight linearly from 0, so that the first epochs are nearly free of it.
        return loss + self.end * inputs.progress.passed * torch.cat(sums).mean()


class PathDepth(Config):
    """PR-DARTS (2020, arXiv:2006.16537): groups of operations compete, and deep cells are rewarded.

    The groups are skip connections, pools, and all other operations. A group is active with the mean
    probability of those of its gates that were kept. A group of which none was kept counts as 0.
    """

    name: Literal["path_depth"] = "path_depth"
    skip: float = Field(0.01, ge=0, description="weight of the activity of skip connections above `free`")
    others: float = Field(0.005, ge=0, description="the same weight for convolutions and none, and for pools")
    path: float = Field(0.005, ge=0, description="reward for convolutions on the path through all nodes")
    free: float = Field(0.2, ge=0, description="activity that costs nothing")

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        relaxation = inputs.relaxation
        assert isinstance(relaxation, HardConcrete), "Method refuses other relaxations"
        tau = relaxation.tau(inputs.progress)
        # One entry for each kind of cell; both are averaged over the kinds.
        activities, paths = [], []
        for kind, alpha_EO in inputs.alphas.items():
            cell_weights = inputs.edge_weights[kind]
            groups = operation_groups(inputs.space.operations, alpha_EO.device)
            kept_EO = cell_weights.runs()
            probability_EO = relaxation.active_probability(alpha_EO, tau)
            compete = (groups.skips_O, groups.others_O, groups.pools_O)
            activities.append(torch.stack([_mean(probability_EO, kept_EO & group_O) for group_O in compete]))
            paths.append(self._path(inputs.space, probability_EO, cell_weights))
        # Averaged over the kinds of cell first: only what is above `free` in the mean costs.
        skips, others, pools = F.relu(torch.stack(activities).mean(0) - self.free)
        reward = self.path * torch.stack(paths).mean()
        return loss + self.skip * skips + self.others * (others + pools) - reward

    def _path(self, space: SearchSpace, probability_EO: Tensor, cell_weights: EdgeWeights) -> Tensor:
        """The product of the activities of convolutions along the path that visits every node in turn."""
        kept_EO, active = cell_weights.runs(), cell_weights.active
        assert active is not None, "gates are sampled"
        convolutions_O = operation_groups(space.operations, probability_EO.device).convolutions_O
        product = probability_EO.new_ones(())
        for e, (source, target) in enumerate(space.edges):
            # From the last input through every node in turn: the deepest way through the cell.
            on_path = source == target - 1 and source >= space.inputs - 1
            # Asked of the host's record: a look at the device would make the host wait for it.
            if on_path and any("conv" in space.operations[operation] for operation in active[e]):
                product = product * _mean(probability_EO[e], kept_EO[e] & convolutions_O)
        return product


class OperationGroups(NamedTuple):
    """(O,) booleans on the device: which operations are of which group."""

    skips_O: Tensor
    others_O: Tensor  # convolutions, and none, which competes with them in the published code
    pools_O: Tensor
    convolutions_O: Tensor


# Every step asks for the groups, so they are built and copied to the device only once.
@functools.cache
def operation_groups(operations: tuple[str, ...], device: torch.device) -> OperationGroups:
    """The groups of a space's operations."""
    skips = torch.tensor([name == "skip_connect" for name in operations])
    pools = torch.tensor(["pool" in name for name in operations])
    convolutions = torch.tensor(["conv" in name for name in operations])
    return OperationGroups(*send_together([skips, ~skips & ~pools, pools, convolutions], device))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of some values; 0 of none."""
    # At least 1 in the denominator: none of them is 0, not nan.
    return (values * where).sum() / where.sum().clamp_min(1)


class Entropy(Config):
    """GAEA (2021, arXiv:2004.07802), optional there: gamma times the sum of theta log(theta O).

    It is 0 for the uniform distribution.
    """

    name: Literal["entropy"] = "entropy"
    gamma: float = Field(
        -1e-3, description="weight; negative drives towards one operation an edge, positive away from it"
    )

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        # All edges of all kinds of cell have the same number of operations.
        theta = torch.cat([cell_weights.weight_EO for cell_weights in inputs.edge_weights.values()])
        operations = theta.shape[1]
        return loss + self.gamma * (torch.special.xlogy(theta, theta) + theta * math.log(operations)).sum()


class CostPenalty(Config):
    """Losses that weigh the expected cost E of the mixed operations.

    ProxylessNAS (2019, arXiv:1812.00332); FBNet (2019, arXiv:1812.03443).
    """

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

    def expected(self, inputs: PenaltyInputs) -> Tensor:
        """The constant and the sum over cells, edges and operations of weight times cost.

        In the DARTS space all 14 edges of a cell count, of which 8 survive: E is more than the found network
        will cost.
        """
        # Costs are summed over all cells of a kind already.
        of_cells = []
        for kind, cost_EO in inputs.costs.items():
            weights = inputs.edge_weights[kind]
            share_EO = weights.weight_EO if weights.expected_EO is None else weights.expected_EO
            of_cells.append((share_EO * cost_EO).sum())
        return inputs.constant + torch.stack(of_cells).sum()

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        cost = self.expected(inputs)
        match self.form:
            case "power":
                # log E / log ref: equal to 1 at the cost to aim at.
                relative = cost.log() / torch.log(torch.tensor(float(self.ref)))
                return (self.scale or 0.2) * loss * relative ** (self.exponent or 0.3)
            case "add":
                return loss + (self.scale or 0.1) * (cost - self.ref) / self.ref
            case "fbnet":
                return (self.scale or 0.2) * loss * cost.log() ** (self.exponent or 0.6)


class ZeroOne(Config):
    """FairDARTS (2020, arXiv:1911.12126): weights in (0, 1) are driven away from a half.

    The loss minus `weight` times the mean of their squared (or absolute) distance from 0.5.
    """

    name: Literal["zero_one"] = "zero_one"
    weight: float = Field(10.0, ge=0, description="of the mean distance")
    power: Literal[1, 2] = Field(
        2, description="of the distance: 2 (the paper's and the code's default) or 1"
    )

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        total, count = [], 0
        for kind, alpha_EO in inputs.alphas.items():
            allowed_EO = inputs.space.allowed_mask(kind, alpha_EO.device)
            distance = (alpha_EO.sigmoid() - 0.5).abs().pow(self.power)
            total.append(torch.where(allowed_EO, distance, 0).sum())
            # Counted on CPU, where nothing waits for a device.
            count += int(inputs.space.allowed_mask(kind).sum())
        return loss - self.weight * torch.stack(total).sum() / count


class Anchor(Config):
    """DrNAS (2021, arXiv:2006.10355): the divergence of each edge's distribution from Dirichlet(1).

    Its code offers this beside the decay of alphas, which is its default.
    """

    name: Literal["anchor"] = "anchor"
    scale: float = Field(1e-3, ge=0, description="of the sum of the divergences")

    def __call__(self, loss: Tensor, inputs: PenaltyInputs) -> Tensor:
        """The loss with the penalty."""
        for alpha_EO in inputs.alphas.values():
            drawn = torch.distributions.Dirichlet(F.elu(alpha_EO) + 1, validate_args=False)
            flat = torch.distributions.Dirichlet(torch.ones_like(alpha_EO), validate_args=False)
            loss = loss + self.scale * torch.distributions.kl_divergence(drawn, flat).sum()
        return loss


Penalty = Annotated[
    BetaDecay | PathDepth | Entropy | CostPenalty | ZeroOne | Anchor, Field(discriminator="name")
]
