"""Coarse-to-fine selection of BigNAS (2020, arXiv:2003.11142): it needs no predictor and no pairs.

Candidates are measured. The paper measures a grid in which the choices move together over the stages, and
then mutates the best of it. Here the number of measurements is given. So of the grid only those points are
measured that leave the budget if any choice is raised, and the smallest architecture, which the sandwich rule
trains in every step; and of many mutants the one that uses most of the budget.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ofa.space.codes import Codes, canonical, mutate
from ofa.space.space import Space
from predictors.search.constraints import Constraint, fits, utilisation
from predictors.selection.evaluations import EvaluateFn, Evaluations

LEVELS = 5  # of a field in the grid, which would be too large otherwise
# How the fine half mutates; compared with other values in docs/log.md.
PARENTS = 3  # of the best known subnets
MUTANTS = 256  # for each measurement, of which one is measured
MUTATION = 0.1  # probability with which each choice is drawn anew


def coarse_to_fine(
    evaluations: Evaluations,
    constraints: Sequence[Constraint],
    count: int,
    rng: np.random.Generator,
    evaluate: EvaluateFn,
) -> None:
    """Measure at most `count` more subnets under the constraints: up to half of them coarse, the others fine.

    A subnet that is known already is not measured and does not count, but it may be mutated like the others.
    The search ends early when every mutant is known.

    Args:
        evaluations: what is known; what is measured is added to it.
        constraints: what every measured subnet keeps.
        count: how many subnets to measure.
        rng: of the mutants.
        evaluate: measures subnets.
    """
    # The coarse half, in one go: none of it depends on what the others reach.
    points = [row for row in coarse(evaluations.space, constraints) if row not in evaluations]
    half = -(-count // 2)  # rounded up: a single measurement is a coarse one
    most_coarse = min(len(points), half)
    # Spread evenly over the edge of the grid, with its first and its last point.
    spread = np.unique(np.linspace(0, len(points) - 1, most_coarse).astype(int))
    evaluations.measure([points[i] for i in spread], evaluate)
    # The fine half, one by one: each mutant comes from the best that is known by then.
    for _ in range(count - len(spread)):
        row = fine(evaluations, constraints, rng)
        if row is None:
            break
        evaluations.measure([row], evaluate)


def coarse(space: Space, constraints: Sequence[Constraint]) -> Codes:
    """The points of the coarse grid from which no choice can be raised under the limits.

    The smallest architecture follows last, if it fits: the sandwich rule trains it in every step, so it may
    be better than all others (docs/log.md).
    """
    grid, shape = coarse_grid(space)
    inside = fits(constraints, grid)
    at_edge = edge(inside.reshape(shape)).ravel()
    at_edge[0] = False  # the smallest architecture, which comes last
    return np.concatenate([grid[at_edge], grid[:1][inside[:1]]])


def coarse_grid(space: Space) -> tuple[Codes, tuple[int, ...]]:
    """All combinations of a level for each field of Arch, as rows in C order of the returned shape.

    A field has as many levels as its richest column has choices, but at most 5. A level is the same share of
    the choices, from the first to the last, in every column of the field.
    """
    richest: dict[str, int] = {}
    for column in space.columns:
        richest[column.field] = max(richest.get(column.field, 0), len(column.values))
    fields = list(richest)
    shape = tuple(min(LEVELS, choices) for choices in richest.values())
    # A row of levels for each point of the grid, one for each field; a field of one level has share 0.
    share_NL = np.indices(shape).reshape(len(fields), -1).T / np.maximum(np.array(shape) - 1, 1)
    share_NF = share_NL[:, [fields.index(column.field) for column in space.columns]]
    choices_NF = np.rint(share_NF * (space.cardinalities - 1)).astype(np.uint8)
    return canonical(space, 1 + choices_NF), shape


def edge(fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points of a grid fit while none of their next higher neighbours does, in the shape of `fits`."""
    can_be_raised = np.zeros_like(fits)
    for axis in range(fits.ndim):
        # A view: raising one choice leads from each point to the next one on its axis.
        below = np.moveaxis(can_be_raised, axis, 0)[:-1]
        below |= np.moveaxis(fits, axis, 0)[1:]
    return fits & ~can_be_raised


def fine(
    evaluations: Evaluations, constraints: Sequence[Constraint], rng: np.random.Generator
) -> Codes | None:
    """An unknown mutant of one of the best subnets under the limits.

    Returns:
        Of 256 mutants the one that uses most of the limits; None if all are known or too expensive.
    """
    parents = [candidate.row for candidate in evaluations.under(constraints)[:PARENTS]]
    if not parents:
        return None
    parent_of = rng.integers(0, len(parents), MUTANTS)
    mutants = mutate(evaluations.space, np.stack(parents)[parent_of], MUTATION, rng)
    mutants = mutants[fits(constraints, mutants)]
    for i in np.argsort(-utilisation(constraints, mutants), kind="stable"):
        if mutants[i] not in evaluations:
            return mutants[i]
    return None
