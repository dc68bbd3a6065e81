"""The most probable chain within limits of its cost, found exactly."""

import numpy as np
from numpy.typing import NDArray

GRID = 20_000  # steps of cost between nothing and the upper limit


def best_choice(
    log_p_EO: NDArray[np.float64], cost_EO: NDArray[np.float64], low: float, high: float
) -> NDArray[np.intp]:
    """One operation for each layer, the most probable choice whose cost lies between two limits.

    Dynamic programming over layers and costs. Costs are rounded up to steps of high / 20,000, so that the
    upper limit always holds. Where nothing lies between the limits, the most expensive choice below them is
    taken, or the cheapest one above.

    Args:
        log_p_EO: logarithms of probabilities; minus infinity for what is not offered.
        cost_EO: costs of at least 0.
        low, high: limits of the sum of costs.
    """
    layers = len(log_p_EO)
    step = max(high, 1e-12) / GRID
    steps_EO = np.ceil(cost_EO / step - 1e-9).astype(np.int64)
    # best[c]: the highest sum of log p over the layers so far, of choices that cost exactly c steps.
    best = np.full(GRID + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((layers, GRID + 1), np.int16)
    for layer in range(layers):
        following = np.full(GRID + 1, -np.inf)
        for column in np.flatnonzero(np.isfinite(log_p_EO[layer])):
            steps = int(steps_EO[layer, column])
            if steps > GRID:
                continue
            moved = np.full(GRID + 1, -np.inf)
            moved[steps:] = best[: GRID + 1 - steps] + log_p_EO[layer, column]
            better = moved > following
            following[better] = moved[better]
            taken[layer, better] = column
        best = following
    reached = np.flatnonzero(np.isfinite(best))
    if not len(reached):
        return np.where(np.isfinite(log_p_EO), cost_EO, np.inf).argmin(1)
    # The true cost may be a step less for each layer.
    inside = reached[(reached - layers) * step >= low]
    # Below the window the most expensive is the nearest.
    at = int(inside[best[inside].argmax()]) if len(inside) else int(reached[-1])
    columns = np.zeros(layers, np.intp)
    for layer in reversed(range(layers)):
        columns[layer] = taken[layer, at]
        at -= int(steps_EO[layer, columns[layer]])
    return columns
