"""The best few measured subnets of each budget after a short tuning, which decides among them.

A supernet measures subnets with shared weights, and tuning is worth more to some of them than to others.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.command.progress import progress
from ofa.space.codes import decode
from ofa.trained import TrainedSupernet
from ofa.training.tuning import tuned_accuracies
from predictors.search.constraints import Constraint, Objective, utilisation
from predictors.selection.evaluations import Candidate, Evaluations, rows_of

FINALIST_EPOCHS = 1  # passes over the training images


class Finalist(NamedTuple):
    """One of the best measured subnets of a budget, and its validation accuracy after the short tuning."""

    candidate: Candidate
    tuned_accuracy: float


def tune_finalists(
    trained: TrainedSupernet, evaluations: Evaluations, objectives: Sequence[Objective], count: int
) -> dict[str, list[Finalist]]:
    """Tune the `count` best measured subnets of each objective, all of them together.

    Returns:
        The finalists by the name of the objective, best measured first.
    """
    best = {o.name: evaluations.under(o.constraints)[:count] for o in objectives}
    # Budgets may share finalists; each is tuned once.
    different: dict[bytes, Candidate] = {}
    for candidates in best.values():
        for candidate in candidates:
            different[candidate.row.tobytes()] = candidate
    archs = [decode(trained.space, candidate.row) for candidate in different.values()]
    batch_size = trained.run.config.get("batch_size", 64)
    with progress("tune finalists", FINALIST_EPOCHS * trained.data.steps(batch_size)) as advance:
        accuracies = tuned_accuracies(trained, archs, FINALIST_EPOCHS, advance)
    tuned = dict(zip(different, accuracies, strict=True))
    found: dict[str, list[Finalist]] = {}
    for name, candidates in best.items():
        found[name] = [Finalist(c, tuned[c.row.tobytes()]) for c in candidates]
    return found


def choose_finalist(
    finalists: Sequence[Finalist], constraints: Sequence[Constraint], evaluations: Evaluations, errors: float
) -> Finalist:
    """The cheapest finalist that ties with the best one, as in `Evaluations.choose`, by tuned accuracy."""
    best = max(finalist.tuned_accuracy for finalist in finalists)
    least = best - errors * evaluations.noise(best)
    ties = [finalist for finalist in finalists if finalist.tuned_accuracy >= least]
    rows = rows_of([finalist.candidate for finalist in ties])
    return ties[int(utilisation(constraints, rows).argmin())]
