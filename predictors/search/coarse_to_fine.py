"""Coarse-to-fine selection of BigNAS (2020, arXiv:2003.11142): candidates are measured; it needs no predictor
and no pairs.

The paper measures a grid in which the choices move together over the stages, and then mutates the best of it.
Here the number of measurements is given. So of the grid only those points are measured that leave the budget
if any choice is raised, and the smallest architecture, which the sandwich rule trains in every step; and of
many mutants the one that uses most of the budget.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ofa.space.codes import Codes, canonical, mutate
from ofa.space.space import Space
from predictors.search.constraints import Constraint, fits, use
from predictors.search.evaluations import Ask, Measured

LEVELS, PARENTS, MUTANTS, MUTATION = 5, 3, 256, 0.1


def coarse_to_fine(
    measured: Measured, constraints: Sequence[Constraint], count: int, rng: np.random.Generator, ask: Ask
) -> None:
    """Measure at most `count` more subnets under the constraints: up to half of them coarse, the others fine.

    What is known already is not measured, counts for nothing, and may be mutated like the rest. Ends early
    when every mutant is known.
    """
    points = [row for row in coarse(measured.space, constraints) if row not in measured]
    spread = np.unique(
        np.linspace(0, len(points) - 1, min(len(points), -(-count // 2))).astype(int)
    )  # with first and last
    measured.measure([points[i] for i in spread], ask)
    for _ in range(count - len(spread)):
        row = fine(measured, constraints, rng)
        if row is None:
            break
        measured.measure([row], ask)


def coarse(space: Space, constraints: Sequence[Constraint]) -> Codes:
    """The points of the coarse grid from which no choice can be raised under the limits, and last the
    smallest architecture, if it fits."""
    grid, shape = coarse_grid(space)
    inside = fits(constraints, grid)
    at_edge = edge(inside.reshape(shape)).ravel()
    at_edge[0] = False
    return np.concatenate([grid[at_edge], grid[:1][inside[:1]]])


def coarse_grid(space: Space) -> tuple[Codes, tuple[int, ...]]:
    """All combinations of a level for each field of Arch, as rows in C order of the returned shape.

    A field has as many levels as its richest column has choices, but at most 5. A level is the same share of
    the choices, from the first to the last, in every column of the field.
    """
    fields = list(dict.fromkeys(column.field for column in space.columns))
    shape = tuple(
        min(LEVELS, max(len(c.values) for c in space.columns if c.field == field)) for field in fields
    )
    share_NL = np.indices(shape).reshape(len(fields), -1).T / np.maximum(np.array(shape) - 1, 1)
    share_NF = share_NL[:, [fields.index(column.field) for column in space.columns]]
    return canonical(space, 1 + np.rint(share_NF * (space.cardinalities - 1)).astype(np.uint8)), shape


def edge(fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points of a grid fit while none of their next higher neighbours does."""
    room = np.zeros_like(fits)
    for axis in range(fits.ndim):
        lower, upper = np.moveaxis(room, axis, 0)[:-1], np.moveaxis(fits, axis, 0)[1:]
        lower |= upper
    return fits & ~room


def fine(measured: Measured, constraints: Sequence[Constraint], rng: np.random.Generator) -> Codes | None:
    """An unknown mutant of one of the best subnets under the limits; none if all its 256 mutants are known or
    too expensive."""
    parents = [candidate.row for candidate in measured.under(constraints)[:PARENTS]]
    if not parents:
        return None
    mutants = mutate(measured.space, np.stack(parents)[rng.integers(0, len(parents), MUTANTS)], MUTATION, rng)
    mutants = mutants[fits(constraints, mutants)]
    order = np.argsort(-use(constraints, mutants), kind="stable")
    return next((mutants[i] for i in order if mutants[i] not in measured), None)
