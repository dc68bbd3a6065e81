"""The exact optimum of an additive score under any number of additive limits.

A Lagrangian bound prices every cost. What a network scores, minus its costs times their prices, plus the
limits times the prices, is never below the score of a network that keeps the limits. With the right prices
the highest bound is close to the optimum. It is a sum over groups of layers, so dynamic programming knows the
best bound of every beginning of a network. Beginnings are continued group after group, and those are dropped
whose bound is below the score of a known network. Few are left. Where more are left than the search wants to
hold, the highest bounds stay, and the result is not proven.

Each resolution has its own prices, because other limits bind at every resolution. A mixed-integer solver
(HiGHS, in scipy.optimize.milp) finds the same optima, but needs a problem for each resolution, and has
tolerances (benchmarks/exact_optimum.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint
from predictors.search.decompose import (
    at_known_resolutions,
    decompose,
    groups_of_layers,
    known_resolutions,
)
from predictors.search.dynamic_programming import (
    LayerCost,
    asleep_rows,
    columns_of,
    first_read,
    options_of,
    places,
)

Indices = NDArray[np.intp]
RESOLUTION = 0  # the column of the resolution, which every group of layers reads
PRICE_STEPS = 200  # twice; every set of limits of benchmarks/exact_optimum.py is proven with them
WIDTHS = (1_000, 10_000, 60_000)  # beginnings that are held: more only where fewer prove nothing
QUICK = (1_000,)  # where a good architecture is enough
SPARE = 64  # beginnings at each resolution of which the best network is found, without proof
EPSILON = 1e-9  # rounding of sums of scores
SHARE_EPSILON = 1e-12  # of sums of shares: more would let pass one MAC too many of a limit of 1G


class Limits(NamedTuple):
    """Limits of architectures as tables of groups of layers.

    costs: for each limit a table for each group of layers; the entries are shares of the limit, so that an
        architecture keeps the limit where its entries sum to 1 at most.
    forbidden: for each group of layers the entries that no architecture may use; False where all are allowed.
    """

    costs: list[list[LayerCost]]
    forbidden: list[NDArray[np.bool_]]


class Optimum(NamedTuple):
    """What `additive_optimum` finds.

    rows: architectures (N, F) that keep the limits: the best, if there is one, and then good ones of every
        resolution at which there are some.
    is_proven: whether no architecture that keeps the limits has a higher score than the first.
    """

    rows: Codes
    is_proven: bool


class Step(NamedTuple):
    """One group of layers with G states of what groups before have chosen, and O options for what is new.

    new: the columns that this group is first to read.
    options: codes of these columns (O, columns).
    resolution: (G,) index of the resolution.
    gain: (G, O) what the option adds to the score; minus infinity where it is not allowed.
    cost: (G, O, K) what it adds to each of K costs, as shares of the limits.
    leaves: (G, O) the state of the next group.
    """

    new: list[int]
    options: Codes
    resolution: Indices
    gain: Floats
    cost: Floats
    leaves: Indices


def additive_limits(space: Space, constraints: Sequence[Constraint]) -> Limits:
    """Those of `constraints` that are sums, or maxima, over groups of layers; no others are in the limits."""
    costs: list[list[LayerCost]] = []
    forbidden: list[NDArray[np.bool_]] = []
    for constraint in constraints:
        cost, known = constraint.cost, known_resolutions(space, constraint.cost)
        if not known.all():
            forbidden = _either(forbidden, _of_resolutions(space, ~known))
            if not known.any():
                continue
            cost = at_known_resolutions(space, cost, known)
        found = decompose(space, cost)
        if found is None:
            continue
        if not found.is_maximum:
            costs.append([part._replace(cost=part.cost / constraint.limit) for part in found.parts])
            continue
        # A maximum keeps the limit where every entry does.
        forbidden = _either(forbidden, [part.cost > constraint.limit for part in found.parts])
    return Limits(costs, forbidden)


def _either(first: list[NDArray[np.bool_]], second: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """What one of two lists of forbidden entries forbids; an empty list forbids nothing."""
    return [a | b for a, b in zip(first, second, strict=True)] if first else second


def _of_resolutions(space: Space, resolutions: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The entries of these resolutions, as forbidden ones."""
    found = []
    for part in groups_of_layers(space):
        entries = np.zeros(part.cost.shape, np.bool_)
        # Every group of layers reads the resolution, in its first column.
        entries[resolutions] = True
        found.append(entries)
    return found


def additive_optimum(
    space: Space,
    gains: Sequence[Floats],
    groups: Sequence[LayerCost],
    limits: Limits,
    widths: Sequence[int] = WIDTHS,
) -> Optimum:
    """The architecture of the highest additive score under limits.

    Args:
        space: of the architectures.
        gains: what `fit_additive` returns for `groups`.
        groups: the groups of layers in order; only their columns matter here.
        limits: what `additive_limits` returns.
        widths: how many beginnings are held; the next one where the one before proved nothing. `WIDTHS` prove
            the optimum of almost all limits, and `QUICK` is for a good start.
    """
    steps = _steps(space, gains, groups, limits)
    resolutions, kinds = len(space.resolution), len(limits.costs)
    least = _least_costs(steps, kinds)
    unknown = np.full(resolutions, -np.inf)
    prices, known = _prices(steps, np.zeros((resolutions, kinds)), unknown)
    search = _Search(space, steps, prices, _best_completions(steps, prices)[0], least)
    rows, scores, is_proven = search.run(known - EPSILON, SPARE * resolutions)
    # Good networks are known now, which tell how far the prices have to go.
    known = unknown.copy()
    np.maximum.at(known, rows[:, RESOLUTION].astype(np.intp) - 1, scores)
    prices, _ = _prices(steps, prices, known)
    search = _Search(space, steps, prices, _best_completions(steps, prices)[0], least)
    for width in widths:
        # Nothing below the best known network can be the optimum, at whatever resolution.
        floor = np.full(resolutions, scores.max(initial=-np.inf) - EPSILON)
        found, found_scores, is_proven = search.run(floor, width)
        better = found_scores > scores.max(initial=-np.inf)
        rows, scores = np.concatenate([rows, found[better]]), np.concatenate([scores, found_scores[better]])
        if is_proven:
            break
    # `return_index` finds the first place of each row, and by these places the order is that of the scores.
    rows = rows[np.argsort(-scores, kind="stable")]
    _, places_of_first = np.unique(rows, axis=0, return_index=True)
    return Optimum(rows[np.sort(places_of_first)], is_proven)


def _steps(space: Space, gains: Sequence[Floats], groups: Sequence[LayerCost], limits: Limits) -> list[Step]:
    steps = []
    for i, new in enumerate(first_read(groups)):
        # The resolution counts as chosen before the first group: every resolution is a search of its own.
        new = [c for c in new if c != RESOLUTION]
        before, after = _read_on_both_sides(groups, i), _read_on_both_sides(groups, i + 1)
        rows = np.zeros((len(options_of(space, before)), len(space.columns)), np.uint8)
        rows[:, before] = options_of(space, before)
        options, resolution = options_of(space, new), rows[:, RESOLUTION].astype(np.intp) - 1
        gain = np.broadcast_to(gains[i], (len(rows), len(gains[i])))
        if i == 0:
            # The first group owns the resolution, too: its terms are of resolutions and then of `options`.
            gain = gains[0].reshape(len(space.resolution), len(options))[resolution]
        place = places(groups[i], rows, new, options)
        asleep = asleep_rows(space, rows, new)
        gain = np.where(asleep[:, None], 0.0, gain)
        gain[asleep, 1:] = -np.inf  # a block that is not there has one option
        cost = np.zeros((*place.shape, len(limits.costs)))
        for k, parts in enumerate(limits.costs):
            cost[..., k] = parts[i].cost.ravel()[place]
        if limits.forbidden:
            gain[limits.forbidden[i].ravel()[place]] = -np.inf
        leaves = np.zeros(place.shape, np.intp)
        for c in after:
            code = options[:, new.index(c)] if c in new else rows[:, c, None]
            leaves = leaves * len(space.columns[c].values) + code - 1
        steps.append(Step(new, options, resolution, gain, cost, leaves))
    return steps


def _read_on_both_sides(groups: Sequence[LayerCost], i: int) -> list[int]:
    """The columns that groups before the i-th and later ones read, and the resolution."""
    return sorted({RESOLUTION} | (columns_of(groups[:i]) & columns_of(groups[i:])))


def _best_completions(steps: Sequence[Step], prices: Floats) -> tuple[list[Floats], Floats]:
    """For each step the best priced score of what follows each of its states; and what the best ones cost.

    Args:
        steps: of the groups of layers.
        prices: (resolutions, K).

    Returns:
        One array (G,) for each step and one of zeros for the end; the costs (resolutions, K) of the best.
    """
    best, cost = np.zeros(len(prices)), np.zeros(prices.shape)
    completions = [best]
    for step in reversed(steps):
        priced = step.gain - (step.cost @ prices[step.resolution][:, :, None])[..., 0] + best[step.leaves]
        state, option = np.arange(len(priced)), priced.argmax(axis=1)
        best = priced[state, option]
        cost = step.cost[state, option] + cost[step.leaves[state, option]]
        completions.append(best)
    return completions[::-1], cost


def _prices(steps: Sequence[Step], prices: Floats, known: Floats) -> tuple[Floats, Floats]:
    """Prices of low bounds, by Polyak's subgradient steps.

    Args:
        steps: of the groups of layers.
        prices: (resolutions, K) to start from.
        known: (resolutions,) scores of networks that keep the limits; minus infinity where none is known.

    Returns:
        Prices (resolutions, K), and the scores that are known now.
    """
    resolutions, kinds = prices.shape
    best_prices, least_bound = prices, np.full(resolutions, np.inf)
    step_size, since = np.ones(resolutions), np.zeros(resolutions)
    spread = sum(float(np.ptp(step.gain[np.isfinite(step.gain)])) for step in steps)
    for _ in range(PRICE_STEPS if kinds else 1):
        completions, cost = _best_completions(steps, prices)
        bound = completions[0] + prices.sum(axis=1)
        # The best network at these prices is a known one where it keeps the limits.
        score = completions[0] + (prices * cost).sum(axis=1)
        keeps = (cost <= 1).all(axis=1)
        known = np.where(keeps, np.maximum(known, score), known)
        better = bound < least_bound - EPSILON
        least_bound = np.where(better, bound, least_bound)
        best_prices = np.where(better[:, None], prices, best_prices)
        since = np.where(better, 0, since + 1)
        step_size = np.where(since == 5, step_size / 2, step_size)
        since = np.where(since == 5, 0, since)
        # Polyak's step is the distance to the known score along the slope of the bound, which is 1 - cost.
        slope = 1 - cost
        distance = np.full(resolutions, spread)
        np.subtract(bound, known, out=distance, where=np.isfinite(known))
        length = step_size * np.maximum(distance, EPSILON) / np.maximum((slope**2).sum(axis=1), EPSILON)
        prices = np.maximum(prices - length[:, None] * slope, 0)
    return best_prices, known


def _least_costs(steps: Sequence[Step], kinds: int) -> list[Floats]:
    """For each step what follows each of its states costs at least, (G, K), each cost for itself."""
    least = [np.zeros((len(np.unique(steps[0].resolution)), kinds))]
    for step in reversed(steps):
        cost = np.where(np.isfinite(step.gain)[..., None], step.cost + least[-1][step.leaves], np.inf)
        least.append(cost.min(axis=1))
    return least[::-1]


class _Search(NamedTuple):
    """Continues beginnings of networks, group of layers after group of layers.

    completions: for each step the best priced score of what follows each state.
    least: for each step what follows each state costs at least.
    """

    space: Space
    steps: list[Step]
    prices: Floats
    completions: list[Floats]
    least: list[Floats]

    def run(self, floor: Floats, width: int) -> tuple[Codes, Floats, bool]:
        """Networks (N, F) that keep the limits, their scores, and whether no beginning was left out.

        Args:
            floor: (resolutions,) bounds below it are of no interest.
            width: how many beginnings are held at most, as many of each resolution that is left.
        """
        resolutions, kinds = self.prices.shape
        rows = np.zeros((resolutions, len(self.space.columns)), np.uint8)
        rows[:, RESOLUTION] = np.arange(1, resolutions + 1)
        state, score, cost = np.arange(resolutions), np.zeros(resolutions), np.zeros((resolutions, kinds))
        is_complete = True
        for i, step in enumerate(self.steps):
            # 1. Every beginning is continued with every option, where its bound and the limits allow it.
            scores, costs = score[:, None] + step.gain[state], cost[:, None] + step.cost[state]
            leaves = step.leaves[state]
            resolution = step.resolution[state]
            priced_rest = ((1 - costs) @ self.prices[resolution][:, :, None])[..., 0]  # of the limits
            bound = scores + self.completions[i + 1][leaves] + priced_rest
            keeps = (costs + self.least[i + 1][leaves] <= 1 + SHARE_EPSILON).all(axis=2)
            parent, option = np.nonzero(keeps & (bound >= floor[resolution][:, None]) & np.isfinite(bound))
            # 2. The highest bounds of every resolution stay.
            each = width // max(len(np.unique(resolution[parent])), 1)
            highest = _highest_of_each(resolution[parent], bound[parent, option], each)
            is_complete &= len(highest) == len(parent)
            parent, option = parent[highest], option[highest]
            taken = step.options[option]
            asleep = asleep_rows(self.space, rows[parent], step.new)
            rows = rows[parent]
            rows[:, step.new] = np.where(asleep[:, None], 0, taken)
            state, score, cost = leaves[parent, option], scores[parent, option], costs[parent, option]
        return rows, score, is_complete


def _highest_of_each(group: Indices, bound: Floats, count: int) -> Indices:
    """Indices of the `count` highest bounds of each group."""
    order = np.lexsort((-bound, group))
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(group)) - np.repeat(start, size)
    return order[rank < count]
