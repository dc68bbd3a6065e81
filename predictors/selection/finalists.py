"""The few subnets of each budget to expect most of, after a short tuning, which decides among them.

A supernet measures subnets with shared weights, and tuning is worth more to some of them than to others.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.command.progress import progress
from ofa.space.codes import decode
from ofa.trained import TrainedSupernet
from ofa.training.tuning import tuned_accuracies
from predictors.search.constraints import ArchCostFn, Constraint, format_cost, utilisation
from predictors.selection.evaluations import Candidate, rows_of
from predictors.selection.posterior import Estimate

FINALIST_EPOCHS = 1  # passes over the training images


class Finalist(NamedTuple):
    """One of the best measured subnets of a budget, and its validation accuracy after the short tuning."""

    estimate: Estimate
    tuned_accuracy: float


def tune_finalists(
    trained: TrainedSupernet, best: Mapping[str, Sequence[Estimate]]
) -> dict[str, list[Finalist]]:
    """Tune the best measured subnets of each objective, all of them together.

    Args:
        trained: the supernet.
        best: the subnets to tune, by the name of their objective.

    Returns:
        The finalists by the name of the objective, in the same order.
    """
    # Budgets may share finalists; each is tuned once.
    different: dict[bytes, Candidate] = {}
    for estimates in best.values():
        for estimate in estimates:
            different[estimate.candidate.row.tobytes()] = estimate.candidate
    archs = [decode(trained.space, candidate.row) for candidate in different.values()]
    batch_size = trained.run.config.get("batch_size", 64)
    with progress("tune finalists", FINALIST_EPOCHS * trained.data.steps(batch_size)) as advance:
        accuracies = tuned_accuracies(trained, archs, FINALIST_EPOCHS, advance)
    tuned = dict(zip(different, accuracies, strict=True))
    found: dict[str, list[Finalist]] = {}
    for name, estimates in best.items():
        found[name] = [Finalist(e, tuned[e.candidate.row.tobytes()]) for e in estimates]
    return found


def choose_finalist(
    finalists: Sequence[Finalist], constraints: Sequence[Constraint], images: int, errors: float
) -> Finalist:
    """The finalist of the highest tuned accuracy; of equal ones the cheapest.

    Args:
        finalists: at least one.
        constraints: the limits, by whose shares the cheapest is found.
        images: how many the accuracies were measured on.
        errors: if positive, the cheapest finalist instead that is within so many standard errors of the best.
    """
    best = max(finalist.tuned_accuracy for finalist in finalists)
    least = best - errors * np.sqrt(best * (1 - best) / images)
    ties = [finalist for finalist in finalists if finalist.tuned_accuracy >= least]
    rows = rows_of([finalist.estimate.candidate for finalist in ties])
    return ties[int(utilisation(constraints, rows).argmin())]


def finalists_sentence(name: str, finalists: Sequence[Finalist], winner: Finalist, macs: ArchCostFn) -> str:
    """What a short tuning decided for a budget.

    Args:
        name: of the budget.
        finalists: all that were tuned, the one to expect most of first.
        winner: the one of them that is selected.
        macs: multiply-accumulates of encoded architectures.
    """
    tried = []
    for finalist in finalists:
        candidate = finalist.estimate.candidate
        cost = format_cost("macs", float(macs(candidate.row[None])[0]))
        mark = " (selected)" if finalist is winner else ""
        tried.append(f"{cost} MACs {candidate.val_accuracy:.2%} -> {finalist.tuned_accuracy:.2%}{mark}")
    return f"{name}: {FINALIST_EPOCHS} epoch of tuning decided among {', '.join(tried)}"
