"""A cost of architectures, taken apart into tables of its groups of layers by asking it.

MACs, parameters, the size of a file and most latencies are sums over layers, and memory is a maximum. A
search knows them as functions only. Some thousand architectures, which differ from the first one in the
choices of one group of layers, show whether a function is of this form, and are its tables if so.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.blocks.layers import LayerSpec
from engine.statistics import Floats
from ofa.layers import cost_tables
from ofa.space.codes import Codes, canonical, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import ArchCostFn
from predictors.search.dynamic_programming import LayerCost, first_read, options_of, places

CHECKED = 256  # random architectures on which the tables must say what the function says
ROUNDING = 1e-9  # of the largest cost: sums in another order differ by less


class Decomposed(NamedTuple):
    """A cost as one table for each group of layers.

    is_maximum: whether the cost is the greatest of its tables' entries; otherwise it is their sum.
    parts: the tables, in the order of `groups_of_layers`.
    """

    is_maximum: bool
    parts: tuple[LayerCost, ...]


@lru_cache(maxsize=8)
def groups_of_layers(space: Space) -> tuple[LayerCost, ...]:
    """The stem, the blocks or stages in order, and the head, all at no cost: only their columns matter."""

    def nothing(layer: LayerSpec) -> tuple[int]:
        return (0,)

    # Neither classes nor channels change which columns are read.
    found = []
    for table in cost_tables(space, 1, 1, nothing):
        found.append(LayerCost(table.columns, table.costs[..., 0]))
    return tuple(found)


def decompose(space: Space, cost: ArchCostFn) -> Decomposed | None:
    """Tables whose sum, or whose maximum, is `cost`; None if it is neither.

    Args:
        space: of the architectures.
        cost: of encoded architectures; it is asked for some ten thousand of them. It may be infinite.
    """
    groups = groups_of_layers(space)
    probes = [_costs_of_group(space, cost, group.columns) for group in groups]
    rows = sample_codes(space, CHECKED, np.random.default_rng(0))
    truth = np.asarray(cost(rows), np.float64)
    finite = np.isfinite(truth)
    if not finite.any():
        return None
    rows, truth = rows[finite], truth[finite]
    allowed = ROUNDING * np.abs(truth).max()
    # A group's own choices are those that no group before it reads. What the choices shared with those before
    # add is counted there already, so it is subtracted here.
    summed = [probes[0]]
    for part, own in zip(probes[1:], first_read(probes)[1:], strict=True):
        at_first = tuple(slice(0, 1) if c in own else slice(None) for c in part.columns)
        with np.errstate(invalid="ignore"):
            more = part.cost - part.cost[at_first]
        # Where a latency is infinite, at a resolution that its table does not cover, the first group says so.
        summed.append(part._replace(cost=np.where(np.isnan(more), 0.0, more)))
    if np.abs(_entries(space, summed, rows).sum(axis=0) - truth).max() <= allowed:
        return Decomposed(False, tuple(summed))
    # All other layers are the smallest where one group is asked, so they hide nothing of it in a maximum.
    if np.abs(_entries(space, probes, rows).max(axis=0) - truth).max() <= allowed:
        return Decomposed(True, tuple(probes))
    return None


def known_resolutions(space: Space, cost: ArchCostFn) -> NDArray[np.bool_]:
    """(resolutions,) where a cost is known: latency is infinite where its table has measured nothing."""
    rows = np.ones((len(space.resolution), len(space.columns)), np.uint8)
    rows[:, space.column_index["resolution", 0]] = np.arange(1, len(rows) + 1)
    return np.isfinite(np.asarray(cost(canonical(space, rows)), np.float64))


def at_known_resolutions(space: Space, cost: ArchCostFn, known: NDArray[np.bool_]) -> ArchCostFn:
    """The same cost, but that of the nearest known resolution where it is not known.

    Infinite entries of tables could not be subtracted from each other.
    """
    codes = 1 + np.flatnonzero(known)
    every = np.arange(1, len(known) + 1)
    nearest = codes[np.abs(every[:, None] - codes).argmin(axis=1)].astype(np.uint8)
    column = space.column_index["resolution", 0]

    def known_cost(rows: Codes) -> Floats:
        rows = rows.copy()
        rows[:, column] = nearest[rows[:, column].astype(np.intp) - 1]
        return np.asarray(cost(rows), np.float64)

    return known_cost


def _costs_of_group(space: Space, cost: ArchCostFn, columns: tuple[int, ...]) -> LayerCost:
    """Costs of the first architecture with every combination of the choices in `columns`."""
    combinations = options_of(space, list(columns))
    rows = np.ones((len(combinations), len(space.columns)), np.uint8)
    rows[:, columns] = combinations
    asked = np.asarray(cost(canonical(space, rows)), np.float64)
    return LayerCost(columns, asked.reshape([len(space.columns[c].values) for c in columns]))


def _entries(space: Space, parts: Sequence[LayerCost], rows: Codes) -> Floats:
    """(parts, N) what each table says of each row."""
    found = []
    for part in parts:
        place = places(part, rows, [], options_of(space, []))
        found.append(part.cost.ravel()[place[:, 0]])
    return np.stack(found)
