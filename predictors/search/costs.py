"""Every cost of a space's architectures that a constraint can limit or a front can trade accuracy for."""

import numpy as np
from numpy.typing import NDArray

from ofa.cost import costs_of, footprints_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.model import LatencyModel
from predictors.search.constraints import ArchCostFn


def cost_functions(
    space: Space, classes: int, channels: int, latency: LatencyModel | None
) -> dict[str, ArchCostFn]:
    """Costs of encoded architectures by name, in the units of `predictors.search.constraints.UNITS`.

    With a latency model they hold the predicted latency of the median run ("latency"), the bound that a limit
    is compared with ("latency_bound"), and the latency that nine of ten runs stay under ("latency_p90") if
    the model's table knows it.

    Args:
        space: of the architectures.
        classes: outputs of the classifier.
        channels: of the input images.
        latency: what `load_latency` returned; without it there is no latency.
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
    if latency is not None:
        found |= {"latency": latency.predict, "latency_bound": latency.bound}
        if latency.knows_slow_runs:
            found["latency_p90"] = latency.slow_run
    return found
