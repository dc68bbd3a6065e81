"""The costs of operations, for a search with a penalty on the cost.

Costs are counted in closed form, or read from a table of latencies.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.run import read_json
from oneshot.axes.penalty import CostPenalty, Penalty
from oneshot.chains.costs import costs_of
from oneshot.chains.layers import ChainCosts, ImageShape
from oneshot.chains.space import CHAIN, ChainSpace
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.costs import edge_costs, published_shape
from oneshot.spaces.search_space import SearchSpace


@dataclass
class OperationCosts:
    """What the parts of the final network cost.

    Args:
        edges: (E, O) for each kind of cell, summed over all its cells; empty where no loss weighs a cost.
        constant: of the rest of the network.
    """

    edges: dict[str, Tensor] = field(default_factory=dict)
    constant: float = 0.0


def operation_costs(
    penalties: tuple[Penalty, ...],
    space: SearchSpace,
    device: torch.device,
    image: ImageShape | None = None,
) -> OperationCosts:
    """What a penalty `cost` among `penalties` weighs; no costs where there is none.

    Args:
        penalties: of the search.
        space: what is searched.
        device: where the costs are to be.
        image: what a chain is built for; cells are costed in their published network.

    Raises:
        UserError: its table does not fit the space, or the space has no such costs.
    """
    for penalty in penalties:
        # Method allows one penalty of each kind only.
        if isinstance(penalty, CostPenalty):
            if isinstance(space, ChainSpace):
                assert image is not None
                return as_operation_costs(costs_of(space, image, penalty.of, penalty.table), device)
            assert isinstance(space, CellSpace)
            return _costs(penalty, space, device)
    return OperationCosts()


def as_operation_costs(costs: ChainCosts, device: torch.device) -> OperationCosts:
    """The costs of a chain's choices, on the device since they enter the loss."""
    cost_EO = torch.tensor(costs.layers_EO, dtype=torch.float32, device=device)
    return OperationCosts({CHAIN: cost_EO}, costs.constant)


def _costs(penalty: CostPenalty, space: CellSpace, device: torch.device) -> OperationCosts:
    if penalty.of == "latency":
        return _read(penalty, space, device)
    counted = edge_costs(space, penalty.of, published_shape(space))
    # float32 on the device, since they enter the loss.
    edges = {}
    for kind, cost_EO in counted.edges.items():
        edges[kind] = torch.tensor(cost_EO, dtype=torch.float32, device=device)
    return OperationCosts(edges, float(counted.constant))


def _read(penalty: CostPenalty, space: CellSpace, device: torch.device) -> OperationCosts:
    """A latency table: operation -> cost on any edge of any cell, or kind of cell -> edges -> operations."""
    if penalty.table is None:
        raise UserError(
            'Penalty cost of latency needs a table; add "table": "FILE.json" to it, with a cost for each '
            "operation."
        )
    values = read_json(penalty.table)
    try:
        edges = {kind: _rows(values, kind, space) for kind in space.cells}
        constant = float(values.get("constant", 0))
        # A negative cost would be a reward without end, and nan would break the alphas.
        numbers = torch.cat([*(rows.flatten() for rows in edges.values()), torch.tensor([constant])])
        if not bool((numbers.isfinite() & (numbers >= 0)).all()):
            raise ValueError("a cost is infinite or below 0")
    except (KeyError, TypeError, ValueError):
        shape = f"{len(space.edges)} rows of {len(space.operations)} numbers"
        wanted = f"{', '.join(space.operations)}; or for each of {', '.join(space.cells)}, {shape}"
        raise UserError(
            f"Cost table '{penalty.table}' does not fit space {space.name}: it must have a number of at "
            f"least 0 for each of {wanted}."
        ) from None
    # The forms power and fbnet take the logarithm of the expected cost, which must stay above 0 in each step.
    least = constant + sum(float(rows.amin(1).sum()) for rows in edges.values())
    if penalty.form != "add" and least <= 1:
        raise UserError(
            f"Cost table '{penalty.table}': form {penalty.form} takes the logarithm of a network's cost, "
            f"which must therefore be above 1, but is {least:g} where everything is cheapest; take a smaller "
            'unit, add what the rest costs as "constant", or take form add.'
        )
    return OperationCosts({kind: rows.to(device) for kind, rows in edges.items()}, constant)


def _rows(values: Any, kind: str, space: CellSpace) -> Tensor:
    """(E, O) costs of one kind of cell."""
    shape = (len(space.edges), len(space.operations))
    # The kinds of cell as names: the long form, with a cost for each edge.
    if set(space.cells) <= set(values):
        rows = torch.tensor(values[kind], dtype=torch.float32)
        if rows.shape != shape:
            raise ValueError("another shape")
        return rows
    # Nothing on an edge costs nothing, so tables need not name it.
    costs = [0.0 if name == "none" else float(values[name]) for name in space.operations]
    return torch.tensor(costs).expand(shape)
