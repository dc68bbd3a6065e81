"""What operations cost, for a search whose loss weighs it: counted in closed form, or read from a table of
latencies."""

from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.run import read_json
from oneshot.axes.penalty import Cost, Penalty
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.costs import DARTS_CIFAR, NASBENCH201, Shape
from oneshot.spaces.costs import edge_costs as counted
from oneshot.state import Costs


def costs_of(penalties: tuple[Penalty, ...], space: CellSpace, device: torch.device) -> Costs:
    """What a penalty `cost` among them weighs; nothing where there is none.

    Raises:
        UserError: its table does not fit the space, or the space has no such costs.
    """
    wanted = next((penalty for penalty in penalties if isinstance(penalty, Cost)), None)
    if wanted is None:
        return Costs()
    if wanted.of == "latency":
        return _read(wanted, space, device)
    found = counted(space, wanted.of, published_shape(space))
    edges = {
        kind: torch.tensor(cost, dtype=torch.float32, device=device) for kind, cost in found.edges.items()
    }
    return Costs(edges, float(found.constant))


def published_shape(space: CellSpace) -> Shape:
    """The final network that the published evaluation builds on CIFAR-10."""
    return NASBENCH201 if space.name == "nasbench201" else DARTS_CIFAR


def _read(cost: Cost, space: CellSpace, device: torch.device) -> Costs:
    """A latency table: operation -> cost on any edge of any cell, or kind of cell -> edges -> operations."""
    if cost.table is None:
        raise UserError(
            'Penalty cost of latency needs a table; add "table": "FILE.json" to it, with a cost for each '
            "operation."
        )
    values = read_json(cost.table)
    try:
        edges = {kind: _rows(values, kind, space) for kind in space.cells}
        constant = float(values.get("constant", 0))
        numbers = torch.cat([*(rows.flatten() for rows in edges.values()), torch.tensor([constant])])
        if not bool((numbers.isfinite() & (numbers >= 0)).all()):
            raise ValueError("a cost is infinite or below 0")
    except (KeyError, TypeError, ValueError):
        shape = f"{len(space.edges)} rows of {len(space.operations)} numbers"
        wanted = f"{', '.join(space.operations)}; or for each of {', '.join(space.cells)}, {shape}"
        raise UserError(
            f"Cost table '{cost.table}' does not fit space {space.name}: it must have a number of at least 0 "
            f"for each of {wanted}."
        ) from None
    least = constant + sum(float(rows.amin(1).sum()) for rows in edges.values())
    if cost.form != "add" and least <= 1:
        raise UserError(
            f"Cost table '{cost.table}': form {cost.form} takes the logarithm of a network's cost, which "
            "must therefore be above 1, but is "
            f"{least:g} where everything is cheapest; take a smaller unit, add what the rest costs as "
            '"constant", or take form add.'
        )
    return Costs({kind: rows.to(device) for kind, rows in edges.items()}, constant)


def _rows(values: Any, kind: str, space: CellSpace) -> Tensor:
    """(E, O) costs of one kind of cell."""
    shape = (len(space.edges), len(space.operations))
    if set(space.cells) <= set(values):
        rows = torch.tensor(values[kind], dtype=torch.float32)
        if rows.shape != shape:
            raise ValueError("another shape")
        return rows
    return torch.tensor([0.0 if name == "none" else float(values[name]) for name in space.operations]).expand(
        shape
    )
