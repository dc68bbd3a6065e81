"""Whether limits can be kept, before anything is measured."""

from collections.abc import Sequence

import numpy as np

from engine.errors import UserError
from ofa.space.arch import largest, smallest
from ofa.space.codes import encode
from ofa.space.space import Space
from predictors.search.best import nearest_feasible
from predictors.search.constraints import (
    EXACT_DIGITS,
    NO_LIMIT,
    Constraint,
    fits,
    format_cost,
    format_limit,
    round_up,
)


def check_limits(
    space: Space, constraints: Sequence[Constraint], resolutions: Sequence[int], rng: np.random.Generator
) -> list[str]:
    """Refuse limits that no subnet keeps together.

    Args:
        space: of the subnets.
        constraints: the limits.
        resolutions: those that are searched, in ascending order.
        rng: of the search for the nearest limits that a subnet keeps.

    Returns:
        A sentence about each limit that is above the largest subnet.

    Raises:
        UserError: no subnet keeps all limits. The error names the nearest limits that a subnet keeps.
    """
    relaxed = _too_low(space, constraints, resolutions, rng)
    if relaxed:
        needed = []
        for c, value in relaxed:
            needed.append(f"{c.flag} {format_cost(c.name, round_up(c.name, value), EXACT_DIGITS)}")
        stated = " ".join(str(c) for c in constraints if c.limit < NO_LIMIT)
        raise UserError(
            f"No subnet of space '{space.name}' keeps {stated}; the nearest "
            f"that one keeps is {' and '.join(needed)}."
        )
    large = largest(space).model_copy(update={"resolution": resolutions[-1]})
    most = encode(space, large)[None]
    sentences = []
    for c in constraints:
        cost = c.cost(most)[0]
        if cost < c.limit < NO_LIMIT:
            sentences.append(
                f"budget {format_limit(c.name, c.limit)} is above the largest subnet "
                f"({c.flag} {format_cost(c.name, cost)}): it excludes none"
            )
    return sentences


def can_be_kept(
    space: Space, resolutions: Sequence[int], rng: np.random.Generator, constraints: Sequence[Constraint]
) -> bool:
    """Whether some subnet keeps all limits by prediction; the arguments are those of `check_limits`."""
    return not _too_low(space, constraints, resolutions, rng)


def _too_low(
    space: Space, constraints: Sequence[Constraint], resolutions: Sequence[int], rng: np.random.Generator
) -> list[tuple[Constraint, float]]:
    """The limits that no subnet keeps beside the others, each with the nearest one that a subnet keeps."""
    small = smallest(space).model_copy(update={"resolution": resolutions[0]})
    least = encode(space, small)[None]
    # Usually the smallest subnet keeps all limits, and nothing has to be searched.
    if fits(constraints, least)[0]:
        return []
    # Latency comes first: where it is infinite, the least of another cost would be of no use.
    ordered = sorted(constraints, key=_is_not_latency)
    return nearest_feasible(space, ordered, rng, least)


def _is_not_latency(constraint: Constraint) -> bool:
    return constraint.name != "latency"
