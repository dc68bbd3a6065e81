"""`--target` of a search: who may aim, at what, and the penalties that give way to it."""

from pathlib import Path

from engine.errors import UserError
from oneshot.axes.penalty import CostPenalty, Penalty
from oneshot.chains.costs import costs_of
from oneshot.chains.space import ChainSpace
from oneshot.chains.target import CostTarget, parse_target
from oneshot.methods.method import Method
from oneshot.objectives.images import ImageObjective
from oneshot.objectives.objective import Objective
from oneshot.spaces.search_space import SearchSpace


def refuse_aim(space: SearchSpace, method: Method, target: str | None, table: Path | None) -> str | None:
    """A sentence on flags that this space or method has no use for; None if there are none.

    Args:
        space: what is searched.
        method: that searches.
        target: of `--target`.
        table: of `--latency-table`.
    """
    if not isinstance(space, ChainSpace):
        for flag, value in (("target", target), ("latency-table", table)):
            if value is not None:
                return (
                    f"--{flag} is for chains of blocks such as --space proxyless; in space {space.name} "
                    "weigh costs with --penalties cost."
                )
        return None
    if target is None and table is not None:
        return "--latency-table is for a target in milliseconds; add --target 15ms, or leave it out."
    if target is not None and not (method.has_architecture_step or method.can_aim):
        return (
            f"Method {method.name} has no step of the architecture that --target could lead; take another "
            "method, such as proxyless."
        )
    return None


def cost_target(
    space: SearchSpace,
    method: Method,
    objective: Objective,
    epochs: int,
    text: str | None,
    table: Path | None,
) -> CostTarget | None:
    """What a search ends at; None: any cost.

    Args:
        space: what is searched.
        method: that searches.
        objective: whose images decide what a chain costs.
        epochs: of the search.
        text: of `--target`.
        table: of `--latency-table`.

    Raises:
        UserError: no chain costs that, or the table does not know it.
    """
    if text is None or not isinstance(space, ChainSpace):
        return None
    assert isinstance(objective, ImageObjective)
    target = parse_target(text)
    costs = costs_of(space, objective.image, target.of, table)
    steps = (epochs - method.warmup_epochs) * objective.steps(0) // method.architecture_every
    return CostTarget(space, costs, target, max(steps, 1), objective.data.device)


def penalties_beside(
    own: tuple[Penalty, ...], given: tuple[Penalty, ...], target: str | None
) -> tuple[Penalty, ...]:
    """A method's own penalties and those beside it; a target takes the place of a weight of the cost.

    Raises:
        UserError: there is a target, and a weight of the cost is given beside it.
    """
    if target is not None:
        if any(isinstance(penalty, CostPenalty) for penalty in given):
            raise UserError("--target weighs the cost by itself; leave out --penalties cost.")
        own = tuple(penalty for penalty in own if not isinstance(penalty, CostPenalty))
    return (*own, *given)
