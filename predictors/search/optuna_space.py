"""A space as Optuna sees it: parameters with names and choices, and architectures made from them.

    study = optuna.create_study(direction="maximize")

    def objective(trial):
        arch = suggest(trial, space)
        set_constraints(trial, [Constraint("macs", 300_000, macs)], encode(space, arch))
        return accuracy(arch)

    study.optimize(objective, n_trials=100)

The trials of predictors.select have the same names and choices, so that any sampler learns from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from engine.errors import UserError, nearest
from engine.statistics import Floats
from ofa.space.arch import Arch
from ofa.space.codes import Codes, canonical, decode
from ofa.space.space import Column, Space
from predictors.search.constraints import Constraint


def parameter_name(column: Column) -> str:
    """`resolution`, `depth[0]`, `kernel[7]`: the field of Arch and the position in it."""
    return column.field if column.field == "resolution" else f"{column.field}[{column.position}]"


def distributions(space: Space) -> dict[str, CategoricalDistribution]:
    """Every choice of the space by its parameter name, such as for `study.ask(distributions(space))`.

    An architecture that is less deep than the deepest has fewer parameters; the others are ignored.
    """
    # Categorical, though the choices are numbers: expansions of 3, 4 and 6 have no even step.
    return {parameter_name(c): CategoricalDistribution(c.values) for c in space.columns}


def suggest(trial: optuna.Trial, space: Space) -> Arch:
    """The architecture that the sampler of a trial proposes; it asks only for blocks that there are.

    Args:
        trial: of any study.
        space: of the architecture.
    """
    row = np.ones((1, len(space.columns)), np.uint8)
    active = np.ones(len(space.columns), np.bool_)
    for i, column in enumerate(space.columns):
        # Depths come before the blocks, so which blocks there are is known here.
        if column.field in ("kernel", "expand"):
            active = canonical(space, row)[0] > 0
        if active[i]:
            value = trial.suggest_categorical(parameter_name(column), column.values)
            row[0, i] = 1 + column.values.index(value)
    return decode(space, canonical(space, row)[0])


def params_from_codes(space: Space, codes_F: Codes) -> dict[str, float]:
    """The parameters of one row of codes (F,); a block that is not there has none."""
    params: dict[str, float] = {}
    for column, code in zip(space.columns, codes_F, strict=True):
        if code:
            params[parameter_name(column)] = column.values[code - 1]
    return params


def codes_from_params(space: Space, params: Mapping[str, Any], missing: Codes | None = None) -> Codes:
    """The row of codes (F,) that parameters mean. Those of blocks past the depth are ignored.

    Args:
        space: of the architecture.
        params: values by name, as `distributions` has them.
        missing: a code (F,) from 1 for each parameter that is not given; without it all have to be given.

    Raises:
        UserError: a name or a value is not of the space, or a parameter is missing; the sentence says which.
    """
    names = [parameter_name(column) for column in space.columns]
    for name in params:
        if name not in names:
            raise UserError(f"Space '{space.name}' has no parameter '{name}'; {nearest(str(name), names)}")
    row = np.ones((1, len(names)), np.uint8) if missing is None else missing[None].copy()
    for i, column in enumerate(space.columns):
        if names[i] in params:
            row[0, i] = 1 + _choice(space, column, params[names[i]])
    row = canonical(space, row)
    if missing is None:
        for name, code in zip(names, row[0], strict=True):
            if code and name not in params:
                raise UserError(f"The parameter '{name}' of space '{space.name}' is missing.")
    return row[0]


def _choice(space: Space, column: Column, value: Any) -> int:
    """The index of a value among the choices of a column."""
    # True equals 1 in Python, but is no depth.
    if isinstance(value, bool) or value not in column.values:
        raise UserError(
            f"{parameter_name(column)} = {value!r} is not in space '{space.name}'; its choices are "
            f"{', '.join(map(str, column.values))}."
        )
    return column.values.index(value)


def violations(constraints: Sequence[Constraint], codes_NF: Codes) -> dict[str, Floats]:
    """By how much architectures are above each limit; 0 or less where they keep it.

    Args:
        constraints: the limits.
        codes_NF: encoded architectures.

    Returns:
        (N,) by the name of the limit.
    """
    # A latency that a table does not know is infinite, which is no JSON for a storage: nan_to_num makes it
    # the largest number.
    return {c.name: np.nan_to_num(np.asarray(c.cost(codes_NF), np.float64) - c.limit) for c in constraints}


def set_constraints(trial: optuna.Trial, constraints: Sequence[Constraint], codes_F: Codes) -> None:
    """Tell Optuna which limits one row of codes (F,) keeps: samplers avoid what is above 0.

    Args:
        trial: of the row.
        constraints: the limits.
        codes_F: what `suggest` proposed, encoded.
    """
    for name, violation in violations(constraints, codes_F[None]).items():
        trial.set_constraint(name, float(violation[0]))
