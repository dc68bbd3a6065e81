"""Measurements as trials of an Optuna study, which several processes or machines may share; Optuna's own
tools can open it.

What is to be measured is enqueued in bulk. A process claims a trial before it measures, so no two do the same
work; when nothing is unclaimed it measures what others claimed and have not finished, so it waits for nobody,
and a killed one costs one measurement.
"""

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from engine.errors import UserError
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint, Costs
from predictors.search.evaluations import Prediction

ROW, RECORD = "codes", b'{"op_code"'


class Study:
    """One selection: accuracy is maximised under its constraints; a front also minimises costs.

    Args:
        name: of the study, which is opened if it is there. Studies of the same weights and images begin
            alike.
        accuracy: measures an encoded architecture, in [0, 1].
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        constraints: Sequence[Constraint],
        front: Mapping[str, Costs],
        accuracy: Callable[[Codes], float],
    ):
        self.storage, self.space, self.constraints, self.front, self.accuracy = (
            storage,
            space,
            constraints,
            front,
            accuracy,
        )
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(front)]
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        self.id = storage.get_study_id_from_name(name)

    def measure(
        self, rows: Sequence[Codes], predictions: Sequence[Prediction | None], note: Callable[[float], None]
    ) -> list[float]:
        """Accuracies of architectures, in their order: known ones at once, others measured here or by who
        shares the study.

        note: hears every accuracy as soon as it is known.
        """
        self._enqueue(rows, predictions)
        found: dict[bytes, float] = {}
        for claimed_too in (False, True):
            for row in rows:
                trial = self._trials()[row.tobytes().hex()]
                if row.tobytes() in found or not (
                    trial.state == TrialState.COMPLETE or claimed_too or self._claim(trial)
                ):
                    continue
                if trial.state == TrialState.COMPLETE:
                    found[row.tobytes()] = trial.values[0]
                else:
                    found[row.tobytes()] = self.accuracy(row)
                    values = [
                        found[row.tobytes()],
                        *(float(cost(row[None])[0]) for cost in self.front.values()),
                    ]
                    self.study.tell(trial.number, values, skip_if_finished=True)
                note(found[row.tobytes()])
        return [found[row.tobytes()] for row in rows]

    def _trials(self) -> dict[str, FrozenTrial]:
        """By architecture; a finished one if two processes enqueued the same at once."""
        trials = self.storage.get_all_trials(self.id, deepcopy=False)
        return {
            t.user_attrs[ROW]: t
            for t in sorted(trials, key=lambda t: (t.state == TrialState.COMPLETE, -t.number))
            if ROW in t.user_attrs
        }

    def _enqueue(self, rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> None:
        known = self._trials()
        fresh = [
            (row, p) for row, p in zip(rows, predictions, strict=True) if row.tobytes().hex() not in known
        ]
        self.study.add_trials([self._waiting(row, prediction) for row, prediction in fresh])

    def _waiting(self, row: Codes, prediction: Prediction | None) -> FrozenTrial:
        active = [
            (f"{column.field}[{column.position}]", column.values, code)
            for column, code in zip(self.space.columns, row, strict=True)
            if code
        ]
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values, _ in active
        }
        return optuna.create_trial(
            state=TrialState.WAITING,
            params={name: values[code - 1] for name, values, code in active},
            distributions=distributions,
            user_attrs={ROW: row.tobytes().hex()} | (prediction._asdict() if prediction else {}),
            constraints={c.name: float(c.cost(row[None])[0] - c.limit) for c in self.constraints},
        )

    def _claim(self, trial: FrozenTrial) -> bool:
        try:
            number = self.storage.get_trial_id_from_study_id_trial_number(self.id, trial.number)
            return self.storage.set_trial_state_values(number, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False


def known_accuracies(storage: BaseStorage, prefix: str, space: Space) -> dict[bytes, float]:
    """What all studies whose names start with `prefix` have measured: accuracy by row of codes."""
    found: dict[bytes, float] = {}
    for study in optuna.get_all_study_summaries(storage):
        if study.study_name.startswith(prefix):
            trials = storage.get_all_trials(
                storage.get_study_id_from_name(study.study_name),
                deepcopy=False,
                states=(TrialState.COMPLETE,),
            )
            found |= {
                bytes.fromhex(t.user_attrs[ROW]): t.values[0]
                for t in trials
                if len(t.user_attrs.get(ROW, "")) == 2 * len(space.columns)
            }
    return found


def fingerprint(run: Path) -> str:
    """Of what a run measures: its weights, space and images. Another training has another."""
    digest = blake2b(digest_size=4)
    for name in ("model.json", "weights.safetensors"):
        digest.update((run / name).read_bytes())
    return digest.hexdigest()


def open_storage(address: str) -> BaseStorage:
    """A database by URL (`sqlite:///studies.db`), or a journal by path.

    Raises:
        UserError: it is damaged or cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return (
            _database(address)
            if "://" in address
            else JournalStorage(JournalFileBackend(address, _Lock(address)))
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"The journal of studies '{address}' is damaged; delete it.") from None
    except (ImportError, SQLAlchemyError) as error:
        raise UserError(f"The storage '{address}' cannot be opened: {str(error).splitlines()[0]}") from None


def _database(url: str) -> RDBStorage:
    """The database at `url`; once more if another process was creating its tables at the same moment."""
    try:
        return RDBStorage(url)
    except (OperationalError, IntegrityError):
        time.sleep(1)
        return RDBStorage(url)


class _Lock(JournalFileOpenLock):
    """A lock of the operating system, which ends with its process: Optuna's are left behind by a kill, and
    waited for.

    Who holds it drops the half line that a killed writer may have left.
    """

    def __init__(self, journal: str) -> None:
        self.journal = Path(journal)

    def acquire(self) -> bool:
        self.handle = os.open(self.journal, os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        size = os.fstat(self.handle).st_size
        tail = os.pread(self.handle, 2**20, max(0, size - 2**20))
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn and RECORD.startswith(torn[: len(RECORD)]):
            os.ftruncate(self.handle, size - len(torn))
        return True

    def release(self) -> None:
        os.close(self.handle)
