"""Every cost of a space's architectures that a constraint can limit or a front can trade accuracy for."""

from pathlib import Path

from ofa.cost import costs_of, footprints_of
from ofa.space.space import Space
from predictors.latency.model import load_latency
from predictors.search.constraints import Costs


def cost_functions(space: Space, classes: int, channels: int, latency_table: Path | None) -> dict[str, Costs]:
    """By name, in the units of `predictors.search.constraints.UNITS`; latency only with a table of a device.

    Raises:
        UserError: the table cannot be read, or is of another space.
    """
    found: dict[str, Costs] = {
        "macs": lambda rows: costs_of(space, rows, classes, channels).macs,
        "params": lambda rows: costs_of(space, rows, classes, channels).params,
        "size": lambda rows: footprints_of(space, rows, classes, channels).file,
        "memory": lambda rows: footprints_of(space, rows, classes, channels).memory,
    }
    if latency_table is not None:
        found["latency"] = load_latency(latency_table, space, classes, channels).predict
    return found
