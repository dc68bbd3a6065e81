"""Every cost of a space's architectures that a constraint can limit or a front can trade accuracy for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ofa.cost import costs_of
from ofa.space import Codes, Space
from predictors.constraints import Costs


def cost_functions(space: Space, classes: int, channels: int, latency_table: Path | None) -> dict[str, Costs]:
    """By name, in the units of `predictors.constraints.UNITS`; latency only with a table of a device.

    Raises:
        UserError: the table cannot be read, or is of another space.
    """
    found: dict[str, Costs] = {
        "macs": lambda rows: costs_of(space, rows, classes, channels).macs,
        "params": lambda rows: costs_of(space, rows, classes, channels).params,
        "size": lambda rows: footprints_of(space, rows, classes, channels).file,
    }
    if latency_table is not None:
        found["latency"] = _latency(latency_table, space, classes, channels)
    return found


class Footprint(NamedTuple):
    """Bytes that a device needs."""

    file: NDArray[np.int64]


def footprints_of(space: Space, rows: Codes, classes: int, channels: int) -> Footprint:
    """(N,) size of the exported file: 4 bytes a parameter."""
    return Footprint(4 * costs_of(space, rows, classes, channels).params)


def _latency(path: Path, space: Space, classes: int, channels: int) -> Callable[[Codes], NDArray[np.float64]]:
    from predictors.latency import load_latency  # type: ignore[import-untyped,unused-ignore]

    return load_latency(path, space, classes, channels).predict
