"""Every cost of a space's architectures that a constraint can limit or a front can trade accuracy for."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofa.cost import costs_of, footprints_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.model import load_latency
from predictors.search.constraints import ArchCostFn


def cost_functions(
    space: Space, classes: int, channels: int, latency_table: Path | None
) -> dict[str, ArchCostFn]:
    """Costs of encoded architectures by name, in the units of `predictors.search.constraints.UNITS`.

    Args:
        space: of the architectures.
        classes: outputs of the classifier.
        channels: of the input images.
        latency_table: a file that predictors.measure wrote; without one there is no latency.

    Raises:
        UserError: the table cannot be read, or is of another space.
    """

    def macs(rows: Codes) -> NDArray[np.int64]:
        return costs_of(space, rows, classes, channels).macs

    def params(rows: Codes) -> NDArray[np.int64]:
        return costs_of(space, rows, classes, channels).params

    def size(rows: Codes) -> NDArray[np.int64]:
        return footprints_of(space, rows, classes, channels).file

    def memory(rows: Codes) -> NDArray[np.int64]:
        return footprints_of(space, rows, classes, channels).memory

    found: dict[str, ArchCostFn] = {"macs": macs, "params": params, "size": size, "memory": memory}
    if latency_table is not None:
        found["latency"] = load_latency(latency_table, space, classes, channels).predict
    return found
