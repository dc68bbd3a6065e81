"""An Optuna study of predicted accuracy under a budget, started from the winners of a fast search and kept in a journal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from engine.errors import UserError
from engine.run import atomic
from engine.seed import derive
from ofa.space import Codes, Space, canonical
from predictors.explore import Costs, Scores


def study(space: Space, score: Scores, macs: Costs, budget: int, seeds: Codes, trials: int, journal: Path, name: str, seed: int) -> Codes:
    """The feasible trials of an Optuna study that starts from `seeds` and goes on with TPE, best first.

    The complete study goes to `journal` as `name`, where Optuna's own tools can open it; one of the same name is replaced.
    Constraint `macs` is violated where positive.

    Raises:
        UserError: the journal is damaged.
    """
    earlier = _open(journal)
    sampler = optuna.samplers.TPESampler(seed=derive(seed, "optuna") % 2**32)
    names = [f"{column.field}[{column.position}]" for column in space.columns]
    rows: dict[int, Codes] = {}

    def objective(trial: optuna.Trial) -> float:
        picked = [c.values.index(trial.suggest_categorical(n, c.values)) + 1 for n, c in zip(names, space.columns, strict=True)]
        row = canonical(space, np.array([picked], np.uint8))
        trial.set_constraint("macs", float(macs(row)[0] - budget))
        rows[trial.number] = row[0]
        return float(score(row)[0])

    with _quiet():
        memory = InMemoryStorage()
        created = optuna.create_study(storage=memory, study_name=name, direction="maximize", sampler=sampler)
        for row in seeds:
            choices = zip(names, space.columns, np.maximum(row, 1), strict=True)
            created.enqueue_trial({name: column.values[code - 1] for name, column, code in choices})
        created.optimize(objective, n_trials=max(trials, len(seeds)))
        _keep(memory, name, earlier, journal)
    done = sorted(created.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))
    found = np.stack([rows[trial.number] for trial in done])
    return found[macs(found) <= budget]


class _Alone(JournalFileOpenLock):
    """No lock, for a file nobody else knows: a real one is left behind by a kill, and turns Ctrl-C into a RuntimeError."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Alone(str(path))))


def _open(journal: Path) -> BaseStorage:
    try:
        return _storage(journal) if journal.exists() else InMemoryStorage()
    except (ValueError, KeyError, TypeError):
        raise UserError(f"The journal of earlier studies '{journal}' is damaged; delete it.") from None


def _keep(memory: InMemoryStorage, name: str, earlier: BaseStorage, journal: Path) -> None:
    """Write the study in `memory` and the `earlier` ones of other names as a new journal, which holds nothing else.

    Optuna only ever appends: deleting a study would make its journal longer.
    """
    with atomic(journal) as temporary:
        storage = _storage(temporary)
        for other in optuna.get_all_study_names(earlier):
            if other != name:
                optuna.copy_study(from_study_name=other, from_storage=earlier, to_storage=storage)
        optuna.copy_study(from_study_name=name, from_storage=memory, to_storage=storage)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs every study, and an interrupted trial with its traceback."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
