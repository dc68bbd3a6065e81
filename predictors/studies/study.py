"""Measurements as trials of an Optuna study, which several processes or machines may share.

What is to be measured is enqueued in bulk. A process claims a trial before it measures, so no two do the same
work. When nothing is unclaimed, it waits for others for twice as long as its own measurements take, and then
measures what they claimed and have not finished. So a killed process costs one measurement. Optuna's own
tools can open the study, and what they add to it counts.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from engine.errors import UserError
from engine.seed import numpy_generator
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import NO_LIMIT, ArchCostFn, Objective, format_limit
from predictors.search.optuna_space import codes_from_params, distributions
from predictors.selection.evaluations import Prediction
from predictors.studies.patience import patiently
from predictors.studies.storage import SharedStorage
from predictors.studies.trials import (
    ADDED,
    PAIRS,
    REASON,
    ROW,
    SELECT,
    SOURCE,
    describe,
    is_known,
    new_trials,
    row_of,
    waiting_params,
)

# Collected pairs that become trials. Every process reads all trials of a study that it opens, and of a space
# of 45 choices that takes 2.7 ms for each in a database.
MOST_PAIRS = 2_000
# Seconds to wait for others at least: a process may have measured nothing itself, or only looked up what
# another study knew, which takes no time.
LEAST_PATIENCE = 1.0
UNFINISHED = (TrialState.WAITING, TrialState.RUNNING)
AccuracyFn = Callable[[Codes], float]  # measures an encoded architecture, in [0, 1]
NoteFn = Callable[[float], None]  # is called with every accuracy as soon as it is known


class Study:
    """One selection: accuracy is maximised under its constraints; a front also minimises costs.

    Args:
        storage: what `open_storage` returns.
        name: of the study, which is opened if it exists. Names of studies of the same weights and images
            have the same prefix, by which `known_accuracies` finds them.
        space: of the architectures.
        objective: what is to be found.
        accuracy: measures an encoded architecture.
        costs: every known cost by the name of its attribute; each trial has them.
        facts: attributes of the study, such as the name of the run.
    """

    def __init__(
        self,
        storage: SharedStorage,
        name: str,
        space: Space,
        objective: Objective,
        accuracy: AccuracyFn,
        costs: Mapping[str, ArchCostFn] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.shared, self.storage = storage, storage.optuna
        self.name, self.space, self.objective, self.accuracy = name, space, objective, accuracy
        self.costs: Mapping[str, ArchCostFn] = costs or {}
        self._longest = 0.0  # seconds that a measurement of this process has taken
        self._rows: dict[int, Codes | None] = {}  # of finished trials, by number: they do not change
        # Optuna optimises values and keeps constraints apart; a front has its costs as further values.
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(objective.front)]
        create = partial(
            optuna.create_study,
            storage=self.storage,
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
        limits = {c.name: format_limit(c.name, c.limit) for c in objective.constraints if c.limit < NO_LIMIT}
        with storage.exclusive():
            self.study = patiently(create)
            self.id = patiently(self.storage.get_study_id_from_name, name)
            self._describe({"space": space.name, "limits": limits} | dict(facts or {}))

    def _describe(self, facts: Mapping[str, Any]) -> None:
        """Write what the study is about, and the names of its values, unless they are there."""
        known = patiently(self.storage.get_study_user_attrs, self.id)
        for key, value in facts.items():
            if known.get(key) != value:
                patiently(self.storage.set_study_user_attr, self.id, key, value)
        names = ["val_accuracy", *self.objective.front]
        if self.study.metric_names != names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                patiently(self.study.set_metric_names, names)

    def add_pairs(self, rows: Sequence[Codes], accuracies: Sequence[float]) -> None:
        """Make finished trials of collected pairs, each once, and at most of the first 2,000.

        Args:
            rows: encoded architectures.
            accuracies: of each.
        """
        with self.shared.exclusive():
            known = self._trials()
            fresh = {}
            for row, accuracy in zip(rows[:MOST_PAIRS], accuracies, strict=False):
                if row.tobytes() not in known:
                    fresh[row.tobytes()] = row, accuracy
            trials = self._new_trials([row for row, _ in fresh.values()])
            for trial, (row, accuracy) in zip(trials, fresh.values(), strict=True):
                describe(trial, PAIRS, None)
                trial.state, trial.values = TrialState.COMPLETE, self._values(row, accuracy)
                trial.datetime_start = trial.datetime_complete = datetime.now()
            if trials and len(rows) > MOST_PAIRS:
                print(f"study {self.name}: the first {MOST_PAIRS:,} of {len(rows):,} pairs are trials")
            patiently(self.shared.insert, self.id, trials)

    def added(self, note: NoteFn) -> dict[bytes, float]:
        """Accuracies of what a notebook has added with Optuna; what it has enqueued is measured now.

        Enqueued parameters that mean no architecture of the space become failed trials with a reason.

        Returns:
            Accuracy by the bytes of the row of codes, in the order in which they were added.
        """
        with self.shared.exclusive():
            for trial in self._all():
                if trial.state == TrialState.WAITING and ROW not in trial.user_attrs:
                    self._take_up(trial)
        rows: dict[bytes, Codes] = {}
        known: set[bytes] = set()
        for row, trial in self._with_rows():
            if is_known(trial):
                known.add(row.tobytes())
            if trial.user_attrs.get(SOURCE, ADDED) == ADDED:
                rows[row.tobytes()] = row
        if rows.keys() - known:
            print(f"study {self.name}: enqueued subnets to measure first: {len(rows.keys() - known)}")
        accuracies = self.measure(list(rows.values()), [None] * len(rows), note)
        self._finish_duplicates()
        return dict(zip(rows, accuracies, strict=True))

    def measure(
        self, rows: Sequence[Codes], predictions: Sequence[Prediction | None], note: NoteFn
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
            if measures_claimed:
                self._wait_for_others({row.tobytes() for row in rows} - found.keys())
            for row in rows:
                if row.tobytes() in found:
                    continue
                # Read anew for each row: other processes finish trials in the meantime, and somebody may
                # fail one by hand, which is enqueued again.
                trial = self._enqueue([row], [None])[row.tobytes()]
                if is_known(trial):
                    accuracy = float(trial.values[0])
                elif measures_claimed or self._claim(trial):
                    accuracy = self._finish(trial, row, self._measured(row))
                else:
                    continue
                found[row.tobytes()] = accuracy
                note(accuracy)
        return [found[row.tobytes()] for row in rows]

    def known(self) -> dict[bytes, float]:
        """All accuracies of the study by the bytes of the row of codes, in the order of its trials."""
        return {row: float(trial.values[0]) for row, trial in self._trials().items() if is_known(trial)}

    def _measured(self, row: Codes) -> float:
        start = time.monotonic()
        accuracy = self.accuracy(row)
        self._longest = max(self._longest, time.monotonic() - start)
        return accuracy

    def _wait_for_others(self, rows: set[bytes]) -> None:
        """Wait until other processes have measured `rows`, or are likely to be dead.

        Nobody knows who is alive: heartbeats would need a thread, and clocks of machines differ.
        """
        patience = max(LEAST_PATIENCE, 2 * self._longest)
        end = time.monotonic() + patience
        while rows and time.monotonic() < end:
            known = self.known()
            rows = {row for row in rows if row not in known}
            if rows:
                time.sleep(min(patience / 10, 1.0))

    def finish(self) -> None:
        """Measure what killed processes have left, so that no trial of a selection stays unfinished."""
        self.added(no_note)
        left = [self._row(trial) for trial in self._trials().values() if not is_known(trial)]
        rows = [row for row in left if row is not None]
        self.measure(rows, [None] * len(rows), no_note)
        self._finish_duplicates()

    def _all(self) -> list[FrozenTrial]:
        return patiently(self.storage.get_all_trials, self.id, False)

    def _with_rows(self) -> list[tuple[Codes, FrozenTrial]]:
        """The trials that count, in their order: those with an accuracy, and those that are to get one.

        A trial that some other program is running, without `ROW`, is that program's affair.
        """
        found = []
        for trial in self._all():
            if is_known(trial) or (trial.state in UNFINISHED and ROW in trial.user_attrs):
                row = self._row(trial)
                if row is not None:
                    found.append((row, trial))
        return found

    def _trials(self) -> dict[bytes, FrozenTrial]:
        """The trials that count, by the bytes of the row of codes.

        Of two trials of the same architecture, which other programs may add, this is the one that had an
        accuracy first, or the first one if neither has one.
        """
        found: dict[bytes, FrozenTrial] = {}
        for row, trial in self._with_rows():
            before = found.setdefault(row.tobytes(), trial)
            if is_known(trial) and (not is_known(before) or _was_first(trial, before)):
                found[row.tobytes()] = trial
        return found

    def _row(self, trial: FrozenTrial) -> Codes | None:
        if trial.number not in self._rows:
            row = row_of(trial, self.space)
            if not trial.state.is_finished():
                return row
            self._rows[trial.number] = row
        return self._rows[trial.number]

    def _enqueue(
        self, rows: Sequence[Codes], predictions: Sequence[Prediction | None]
    ) -> dict[bytes, FrozenTrial]:
        """Add waiting trials of those architectures that have none.

        Returns:
            All trials that count, as `_trials` returns them.
        """
        known = self._trials()
        if all(row.tobytes() in known for row in rows):
            return known
        # Looked at again under the lock: otherwise two processes could enqueue the same architecture.
        with self.shared.exclusive():
            known = self._trials()
            fresh = {}
            for row, prediction in zip(rows, predictions, strict=True):
                if row.tobytes() not in known:
                    fresh[row.tobytes()] = row, prediction
            trials = self._new_trials([row for row, _ in fresh.values()])
            for trial, (_, prediction) in zip(trials, fresh.values(), strict=True):
                describe(trial, SELECT, prediction)
            patiently(self.shared.insert, self.id, trials)
            return self._trials()

    def _new_trials(self, rows: Sequence[Codes]) -> list[FrozenTrial]:
        constraints = self.objective.constraints
        return new_trials(self.space, rows, distributions(self.space), constraints, self.costs)

    def _take_up(self, trial: FrozenTrial) -> None:
        """Give an enqueued trial the parameters and attributes that select's own trials have."""
        # What was left open is drawn; every process draws the same.
        drawn = numpy_generator(trial.number, "enqueued").integers(1, self.space.cardinalities + 1)
        number = self._id_of(trial)
        # Another process may finish the trial in the meantime, and needs nothing of this any more.
        with suppress(UpdateFinishedTrialError):
            try:
                params = waiting_params(trial)
                row = codes_from_params(self.space, params, drawn.astype(np.uint8))
            except UserError as error:
                print(f"study {self.name}: enqueued trial {trial.number} fails: {error}")
                patiently(self.storage.set_trial_user_attr, number, REASON, str(error))
                patiently(self.storage.set_trial_state_values, number, TrialState.FAIL)
                return
            new = describe(self._new_trials([row])[0], ADDED, None)
            for name, value in new.params.items():
                if name not in trial.params:
                    choices = new.distributions[name]
                    # Optuna refuses it if the study has other choices of this name, from another program.
                    with suppress(ValueError):
                        internal = choices.to_internal_repr(value)
                        patiently(self.storage.set_trial_param, number, name, internal, choices)
            for key, value in new.system_attrs.items():
                patiently(self.storage.set_trial_system_attr, number, key, value)
            attributes = dict(new.user_attrs)
            text = attributes.pop(ROW)
            for key, value in attributes.items():
                patiently(self.storage.set_trial_user_attr, number, key, value)
            # The row comes last: a trial that has one is taken up.
            patiently(self.storage.set_trial_user_attr, number, ROW, text)

    def _claim(self, trial: FrozenTrial) -> bool:
        """Whether this process is now the one that measures the trial."""
        try:
            # Optuna returns False if another process measures the trial, and raises if one has finished it.
            claim = self.storage.set_trial_state_values
            return patiently(claim, self._id_of(trial), TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _finish(self, trial: FrozenTrial, row: Codes, accuracy: float) -> float:
        """Write an accuracy into a trial.

        Returns:
            What the trial has in the end. All processes go on with that, so that they choose the same.
        """
        number = self._id_of(trial)
        # The process that claimed the trial may have finished it by now.
        with suppress(UpdateFinishedTrialError):
            values = self._values(row, accuracy)
            patiently(self.storage.set_trial_state_values, number, TrialState.COMPLETE, values)
        finished = patiently(self.storage.get_trial, number)
        return float(finished.values[0]) if is_known(finished) else accuracy

    def _finish_duplicates(self) -> None:
        """Give trials of architectures that are known by another trial the accuracy of that."""
        known = self._trials()
        for row, trial in self._with_rows():
            first = known.get(row.tobytes(), trial)  # another process may have added the trial meanwhile
            if not is_known(trial) and is_known(first):
                self._finish(trial, row, float(first.values[0]))

    def _values(self, row: Codes, accuracy: float) -> list[float]:
        return [accuracy, *[float(cost(row[None])[0]) for cost in self.objective.front.values()]]

    def _id_of(self, trial: FrozenTrial) -> int:
        find = self.storage.get_trial_id_from_study_id_trial_number
        return patiently(find, self.id, trial.number)


def no_note(accuracy: float) -> None:
    """Nobody is told."""


def _was_first(trial: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether a finished trial was finished before another one."""
    if trial.datetime_complete is None or other.datetime_complete is None:
        return False
    return trial.datetime_complete < other.datetime_complete


def known_accuracies(storage: SharedStorage, prefix: str, space: Space) -> dict[bytes, float]:
    """What all studies whose names start with `prefix` have measured.

    Returns:
        Accuracy in [0, 1] by the bytes of the row of codes.
    """
    found: dict[bytes, float] = {}
    for study in patiently(storage.optuna.get_all_studies):
        if not study.study_name.startswith(prefix):
            continue
        number = patiently(storage.optuna.get_study_id_from_name, study.study_name)
        for trial in patiently(storage.optuna.get_all_trials, number, False):
            row = row_of(trial, space) if is_known(trial) else None
            if row is not None:
                found[row.tobytes()] = float(trial.values[0])
    return found


def run_fingerprint(run: Path) -> str:
    """A short name of the weights, space and preprocessing of a run. Another training has another one."""
    digest = blake2b(digest_size=4)
    for name in ("model.json", "weights.safetensors"):
        digest.update((run / name).read_bytes())
    return digest.hexdigest()
