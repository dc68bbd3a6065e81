"""Architectures with their accuracies as trials of Optuna, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from engine.errors import UserError
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.table import row_of_codes
from predictors.search.constraints import ArchCostFn, Constraint
from predictors.search.optuna_space import codes_from_params, params_from_codes, violations
from predictors.selection.evaluations import Prediction

# Attributes of a trial.
ROW = "codes"  # its row of codes, in hexadecimal
SOURCE = "source"  # who asked for it, one of the following
REASON = "reason"  # why it failed
PAIRS, SELECT, ADDED = "pairs", "select", "added"


def new_trials(
    space: Space,
    rows: Sequence[Codes],
    distributions: Mapping[str, BaseDistribution],
    constraints: Sequence[Constraint],
    costs: Mapping[str, ArchCostFn],
) -> list[FrozenTrial]:
    """Waiting trials of architectures, with their costs as attributes and their limits as constraints.

    Args:
        space: of the architectures.
        rows: their codes.
        distributions: the choices of the space by name.
        constraints: the limits; violated where positive, as Optuna wants it.
        costs: every known cost by the name of its attribute.
    """
    if not rows:
        return []
    codes_NF = np.stack(rows)
    costs_N = {name: cost(codes_NF) for name, cost in costs.items()}
    violations_N = violations(constraints, codes_NF)
    trials = []
    for i, row in enumerate(rows):
        params = params_from_codes(space, row)
        trial = optuna.create_trial(
            state=TrialState.WAITING,
            params=params,
            distributions={name: distributions[name] for name in params},
            constraints={name: float(violation[i]) for name, violation in violations_N.items()},
        )
        for name, cost in costs_N.items():
            # A latency that a table does not know is infinite, which is no JSON for a dashboard.
            if np.isfinite(cost[i]):
                trial.set_user_attr(name, cost[i].item())
        trial.set_user_attr(ROW, row.tobytes().hex())
        trials.append(trial)
    return trials


def describe(trial: FrozenTrial, source: str, prediction: Prediction | None) -> FrozenTrial:
    """Write into a new trial who asked for it and what was predicted."""
    trial.set_user_attr(SOURCE, source)
    if prediction:
        for name, value in prediction._asdict().items():
            trial.set_user_attr(name, value)
    return trial


def row_of(trial: FrozenTrial, space: Space) -> Codes | None:
    """The row of codes (F,) of a trial; None if it is no architecture of `space`.

    Trials that other programs have added have parameters only.
    """
    text = trial.user_attrs.get(ROW)
    if text is not None:
        return row_of_codes(str(text), space)
    try:
        return codes_from_params(space, trial.params)
    except UserError:
        return None


def waiting_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a waiting trial was enqueued with.

    Raises:
        UserError: it has none.
    """
    # Optuna keeps what was enqueued apart from parameters until a sampler asks for them. It does not document
    # the name. If a later Optuna has another one, drawing all parameters instead would be wrong.
    enqueued = trial.system_attrs.get("fixed_params")
    if enqueued is None and not trial.params:
        raise UserError("It has no parameters that this version of ofa-toolkit could read.")
    return (enqueued or {}) | trial.params


def is_known(trial: FrozenTrial) -> bool:
    """Whether a trial is finished with an accuracy: its first value, in [0, 1]."""
    return trial.state == TrialState.COMPLETE and 0 <= trial.values[0] <= 1
