"""Candidates under a budget: a fast vectorised evolution, and an Optuna study that it seeds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from engine.errors import UserError
from engine.seed import derive
from ofa.space import Codes, Space, canonical, cross, encode, mutate, sample_codes, smallest

Scores = Callable[[Codes], NDArray[np.float64]]
Costs = Callable[[Codes], NDArray[np.int64]]
INITIAL, FIRST, PARENTS, CHILDREN, GENERATIONS, MUTATION = 100_000, 4_096, 128, 512, 20, 0.1


def evolve(space: Space, score: Scores, macs: Costs, budget: int, rng: np.random.Generator) -> Codes:
    """The best architectures with at most `budget` MACs, best predicted first, all different.

    Evolution on whole arrays: the best of up to 4,096 feasible samples, then 20 generations of 256 mutations (0.1 per
    choice) and 256 crossovers of the 128 best: at most 14,336 predictions, after the cost has sorted out the infeasible.
    The smallest architecture is always a candidate, so a feasible budget never comes back empty.
    """
    pool = np.concatenate([encode(space, smallest(space))[None], sample_codes(space, INITIAL, rng)])
    pool = pool[macs(pool) <= budget][:FIRST]
    best = _best(pool, score)
    for _ in range(GENERATIONS):
        parents = best[0][rng.integers(0, len(best[0]), (2, CHILDREN // 2))]
        children = np.concatenate([mutate(space, parents[0], MUTATION, rng), cross(space, parents[0], parents[1], rng)])
        best = _best(children[macs(children) <= budget], score, best)
    return best[0]


Ranked = tuple[Codes, NDArray[np.float64]]


def _best(fresh: Codes, score: Scores, kept: Ranked | None = None) -> Ranked:
    """The PARENTS best different rows of `fresh` and `kept`, and their scores."""
    scores = score(fresh) if len(fresh) else np.empty(0)
    if kept is not None:
        fresh, scores = np.concatenate([kept[0], fresh]), np.concatenate([kept[1], scores])
    _, first = np.unique(fresh, axis=0, return_index=True)
    order = first[np.argsort(-scores[first], kind="stable")][:PARENTS]
    return fresh[order], scores[order]


def study(space: Space, score: Scores, macs: Costs, budget: int, seeds: Codes, trials: int, journal: Path, name: str, seed: int) -> Codes:
    """The feasible trials of an Optuna study that starts from `seeds` and goes on with TPE, best first.

    The study `name` in `journal` can be opened with Optuna's own tools; one of the same name is replaced. Constraint
    `macs` is violated where positive.
    """
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        known = optuna.study.get_all_study_names(storage)
    except ValueError:
        raise UserError(f"The journal of earlier studies '{journal}' is damaged; delete it.") from None
    if name in known:
        optuna.delete_study(study_name=name, storage=storage)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive(seed, "optuna") % 2**32)
    created = optuna.create_study(storage=storage, study_name=name, direction="maximize", sampler=sampler)
    names = [f"{column.field}[{column.position}]" for column in space.columns]
    for row in seeds:
        choices = zip(names, space.columns, np.maximum(row, 1), strict=True)
        created.enqueue_trial({name: column.values[code - 1] for name, column, code in choices})
    rows: dict[int, Codes] = {}

    def objective(trial: optuna.Trial) -> float:
        picked = [c.values.index(trial.suggest_categorical(n, c.values)) + 1 for n, c in zip(names, space.columns, strict=True)]
        row = canonical(space, np.array([picked], np.uint8))
        trial.set_constraint("macs", float(macs(row)[0] - budget))
        rows[trial.number] = row[0]
        return float(score(row)[0])

    created.optimize(objective, n_trials=max(trials, len(seeds)))
    optuna.logging.set_verbosity(verbosity)
    done = sorted(created.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))
    found = np.stack([rows[trial.number] for trial in done])
    return found[macs(found) <= budget]
