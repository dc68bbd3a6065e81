"""Measurements as trials of an Optuna study, which several processes or machines may share.

What is to be measured is enqueued in bulk. A process claims a trial before it measures, so no two do the same
work. When nothing is unclaimed, it measures what others claimed and have not finished. So it waits for
nobody, and a killed process costs one measurement. Optuna's own tools can open the study.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from engine.errors import UserError
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import Objective
from predictors.selection.evaluations import Prediction

ROW = "codes"  # the attribute of a trial that holds its row of codes, in hexadecimal
SQLITE_PATIENCE = 60  # seconds to wait for another process's transaction, which takes milliseconds
RECORD = b'{"op_code"'  # how a line of Optuna's journal starts


class Study:
    """One selection: accuracy is maximised under its constraints; a front also minimises costs.

    Args:
        storage: what `open_storage` returns.
        name: of the study, which is opened if it exists. Names of studies of the same weights and images
            have the same prefix, by which `known_accuracies` finds them.
        space: of the architectures.
        objective: what is to be found.
        accuracy: measures an encoded architecture, in [0, 1].
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        objective: Objective,
        accuracy: Callable[[Codes], float],
    ) -> None:
        self.storage, self.space, self.objective, self.accuracy = storage, space, objective, accuracy
        # Optuna optimises values and keeps constraints apart; a front has its costs as further values.
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(objective.front)]
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        self.id = storage.get_study_id_from_name(name)

    def measure(
        self, rows: Sequence[Codes], predictions: Sequence[Prediction | None], note: Callable[[float], None]
    ) -> list[float]:
        """Accuracies of architectures, in their order.

        Those that the study knows are not measured again. The others are measured by this process, or by
        another one that shares the study.

        Args:
            rows: encoded architectures.
            predictions: what was predicted of each; the trials keep it.
            note: a function that is called with every accuracy as soon as it is known.
        """
        self._enqueue(rows, predictions)
        found: dict[bytes, float] = {}
        # First what is finished or still free. Only then what another process claimed: it may have died.
        for measures_claimed in (False, True):
            for row in rows:
                if row.tobytes() in found:
                    continue
                # Read anew for each row: other processes finish trials in the meantime.
                trial = self._trials()[row.tobytes().hex()]
                if trial.state == TrialState.COMPLETE:
                    accuracy = float(trial.values[0])
                elif measures_claimed or self._claim(trial):
                    accuracy = self._measure(row, trial)
                else:
                    continue
                found[row.tobytes()] = accuracy
                note(accuracy)
        return [found[row.tobytes()] for row in rows]

    def known(self) -> dict[bytes, float]:
        """Accuracy in [0, 1] of every finished trial of this study, by the bytes of the row of codes."""
        return _finished(self.storage, self.id, self.space)

    def _measure(self, row: Codes, trial: FrozenTrial) -> float:
        accuracy = self.accuracy(row)
        costs = [float(cost(row[None])[0]) for cost in self.objective.front.values()]
        # The process that claimed the trial may have finished it by now. Optuna skips what was finished when
        # it looks, and raises if the other process finishes between that look and its own write.
        with suppress(UpdateFinishedTrialError):
            self.study.tell(trial.number, [accuracy, *costs], skip_if_finished=True)
        return accuracy

    def _trials(self) -> dict[str, FrozenTrial]:
        """The trials by architecture.

        Two processes may have enqueued the same architecture at the same moment. Of two such trials, this is
        the finished one, or the earlier one if neither or both are finished.
        """
        trials = self.storage.get_all_trials(self.id, deepcopy=False)
        # The last one of each architecture stays in the dictionary.
        trials = sorted(trials, key=_finished_then_earliest)
        return {trial.user_attrs[ROW]: trial for trial in trials if ROW in trial.user_attrs}

    def _enqueue(self, rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> None:
        known = self._trials()
        fresh = []
        for row, prediction in zip(rows, predictions, strict=True):
            if row.tobytes().hex() not in known:
                fresh.append(self._waiting_trial(row, prediction))
        self.study.add_trials(fresh)

    def _waiting_trial(self, row: Codes, prediction: Prediction | None) -> FrozenTrial:
        params: dict[str, float] = {}
        distributions: dict[str, BaseDistribution] = {}
        for column, code in zip(self.space.columns, row, strict=True):
            if code:  # a block that is not there has no parameters
                name = f"{column.field}[{column.position}]"
                params[name] = column.values[code - 1]
                distributions[name] = CategoricalDistribution(column.values)
        constraints = {}  # violated where positive, as Optuna wants it
        for c in self.objective.constraints:
            constraints[c.name] = float(c.cost(row[None])[0] - c.limit)
        predicted = prediction._asdict() if prediction else {}
        return optuna.create_trial(
            state=TrialState.WAITING,
            params=params,
            distributions=distributions,
            user_attrs={ROW: row.tobytes().hex()} | predicted,
            constraints=constraints,
        )

    def _claim(self, trial: FrozenTrial) -> bool:
        """Whether this process is now the one that measures the trial."""
        try:
            # Optuna returns False if another process measures the trial, and raises if one has finished it.
            number = self.storage.get_trial_id_from_study_id_trial_number(self.id, trial.number)
            return self.storage.set_trial_state_values(number, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False


def _finished_then_earliest(trial: FrozenTrial) -> tuple[bool, int]:
    return trial.state == TrialState.COMPLETE, -trial.number


def known_accuracies(storage: BaseStorage, prefix: str, space: Space) -> dict[bytes, float]:
    """What all studies whose names start with `prefix` have measured.

    Returns:
        Accuracy in [0, 1] by the bytes of the row of codes.
    """
    found: dict[bytes, float] = {}
    for summary in optuna.get_all_study_summaries(storage):
        if summary.study_name.startswith(prefix):
            study = storage.get_study_id_from_name(summary.study_name)
            found |= _finished(storage, study, space)
    return found


def _finished(storage: BaseStorage, study: int, space: Space) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for trial in storage.get_all_trials(study, deepcopy=False, states=(TrialState.COMPLETE,)):
        # Somebody may have added trials of their own with Optuna's tools.
        row = trial.user_attrs.get(ROW, "")
        if len(row) == 2 * len(space.columns):
            found[bytes.fromhex(row)] = trial.values[0]
    return found


def run_fingerprint(run: Path) -> str:
    """A short name of the weights, space and preprocessing of a run. Another training has another one."""
    digest = blake2b(digest_size=4)
    for name in ("model.json", "weights.safetensors"):
        digest.update((run / name).read_bytes())
    return digest.hexdigest()


def open_storage(address: str) -> BaseStorage:
    """A database by URL (`sqlite:///studies.db`), or a journal by path.

    Raises:
        UserError: it is damaged or cannot be reached.
    """
    try:
        if "://" in address:
            return _database(address)
        return JournalStorage(JournalFileBackend(address, _Lock(address)))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"The journal of studies '{address}' is damaged; delete it.") from None
    except (ImportError, SQLAlchemyError) as error:
        raise UserError(f"The storage '{address}' cannot be opened: {str(error).splitlines()[0]}") from None


def _database(url: str) -> RDBStorage:
    """The database at `url`. It is tried twice: another process may be creating its tables at this moment."""
    try:
        storage = RDBStorage(url)
    except (OperationalError, IntegrityError):
        time.sleep(1)
        storage = RDBStorage(url)
    if storage.engine.dialect.name == "sqlite":
        _lock_before_reading(storage.engine)
    return storage


def _lock_before_reading(engine: Engine) -> None:
    """Let every transaction of a SQLite engine begin with the lock for writing.

    Optuna claims a trial by SELECT ... FOR UPDATE, which SQLite ignores: two processes could read that a
    trial waits, and both would claim it.
    """

    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # Python's driver does not begin transactions of its own
        connection.execute(f"PRAGMA busy_timeout = {1000 * SQLITE_PATIENCE}")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections from before know nothing of this


class _Lock(JournalFileOpenLock):
    """A lock of the operating system on the journal, which ends with its process.

    Optuna's own locks are files: a killed process leaves them behind, and others wait for them. The process
    that acquires this lock also removes the half line that a killed writer may have left.
    """

    def __init__(self, journal: str) -> None:
        self.journal = Path(journal)

    def acquire(self) -> bool:
        self.handle = os.open(self.journal, os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        size = os.fstat(self.handle).st_size
        # What follows the last line break is a torn record, if it starts as a record does. Anything else is
        # damage: it stays as it is, and `open_storage` reports it. The last MiB is enough to look at, since a
        # record is much shorter.
        tail = os.pread(self.handle, 2**20, max(0, size - 2**20))
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn and RECORD.startswith(torn[: len(RECORD)]):
            os.ftruncate(self.handle, size - len(torn))
        return True

    def release(self) -> None:
        os.close(self.handle)
