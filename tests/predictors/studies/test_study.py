"""Measurements as trials: enqueued, claimed, shared by processes of which one is killed, and open to Optuna's
own tools."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import optuna
import pytest
from forked import FORKED
from limits_of_macs import macs_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from engine.errors import UserError
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint, Objective
from predictors.search.optuna_space import distributions, parameter_name, params_from_codes
from predictors.selection.evaluations import Prediction
from predictors.studies.storage import open_storage, open_studies
from predictors.studies.study import Study, known_accuracies


class Worker:
    """A study of 12 architectures and what this process measured of them."""

    def __init__(
        self, space: Space, address: str, name: str = "tiny-1", *, front: bool = False, slow: float = 0.0
    ) -> None:
        self.rows = list(np.unique(sample_codes(space, 1_000, np.random.default_rng(0)), axis=0)[:12])
        self.measured: list[bytes] = []
        self.slow = slow

        def macs(rows: Codes) -> np.ndarray:
            return macs_of(space, rows)

        limit = Constraint("macs", float(np.median(macs(np.stack(self.rows)))), macs)
        objective = Objective("tiny", (limit,), {"macs": macs} if front else {})
        self.study = Study(open_storage(address), name, space, objective, self.accuracy)

    def accuracy(self, row: Codes) -> float:
        time.sleep(self.slow)
        self.measured.append(row.tobytes())
        return float(row.sum()) / 100

    def run(self) -> list[float]:
        heard: list[float] = []
        found = self.study.measure(
            self.rows, [Prediction(0.5, 0.1, (0.4, 0.6))] * len(self.rows), heard.append
        )
        assert sorted(heard) == sorted(found) == sorted(float(row.sum()) / 100 for row in self.rows)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_each_is_measured_once_and_known_afterwards(tiny: Space, tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "journal") if kind == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"
    first, again = Worker(tiny, address), Worker(tiny, address)
    assert first.run() == again.run() == [float(row.sum()) / 100 for row in first.rows]
    assert len(set(first.measured)) == len(first.measured) == 12
    assert again.measured == []
    Worker(tiny, address, "other-1")
    known = known_accuracies(open_storage(address), "tiny-", tiny)
    assert known == {row.tobytes(): float(row.sum()) / 100 for row in first.rows}
    assert known_accuracies(open_storage(address), "other-", tiny) == {}


def test_optunas_own_tools_open_it(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"))
    worker.run()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    opened = optuna.load_study(study_name="tiny-1", storage=storage)
    feasible = [t for t in opened.trials if all(v <= 0 for v in t.constraints.values())]
    assert 0 < len(feasible) < len(opened.trials) == 12
    assert opened.best_trial.value == max(t.value or 0 for t in feasible)
    for trial, row in zip(opened.trials, worker.rows, strict=True):
        assert (
            trial.constraints["macs"]
            == macs_of(tiny, row[None])[0] - worker.study.objective.constraints[0].limit
        )
        active = [c for c, code in zip(tiny.columns, row, strict=True) if code]
        assert trial.params == {
            parameter_name(c): c.values[row[tiny.column_index[c.field, c.position]] - 1] for c in active
        }
        assert (trial.user_attrs["predicted_accuracy"], trial.user_attrs["interval"]) == (0.5, [0.4, 0.6])


def test_a_front_is_a_study_of_several_objectives(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"), front=True)
    worker.run()
    opened = optuna.load_study(
        study_name="tiny-1", storage=JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    )
    assert [d.name for d in opened.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [t.values for t in opened.trials] == [
        [row.sum() / 100, macs_of(tiny, row[None])[0]] for row in worker.rows
    ]


def opened(path: Path) -> optuna.Study:
    """The study as a notebook opens it."""
    return optuna.load_study(study_name="tiny-1", storage=JournalStorage(JournalFileBackend(str(path))))


def test_collected_pairs_are_trials_once(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"), front=True)
    pairs = [0.5 + i / 100 for i in range(5)]
    for _ in range(2):
        worker.study.add_pairs(worker.rows[:5], pairs)
    worker.study.measure(worker.rows[:6], [None] * 6, print)
    assert worker.measured == [worker.rows[5].tobytes()], "pairs are known"
    study = opened(tmp_path / "journal")
    macs = macs_of(tiny, np.stack(worker.rows[:6]))
    assert [t.values[0] for t in study.trials] == [*pairs, worker.rows[5].sum() / 100]
    assert [t.values[1] for t in study.trials] == list(macs)
    assert [t.user_attrs["source"] for t in study.trials] == [*["pairs"] * 5, "select"]
    assert [t.params for t in study.trials] == [params_from_codes(tiny, row) for row in worker.rows[:6]]
    assert study.metric_names == ["val_accuracy", "macs"]
    assert study.user_attrs["space"] == tiny.name and "macs" in study.user_attrs["limits"]


def test_trials_have_every_cost_that_is_known(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"))
    worker.study.costs = {"macs": lambda rows: macs_of(tiny, rows), "latency_ms": unknown_latency}
    worker.run()
    for trial, row in zip(opened(tmp_path / "journal").trials, worker.rows, strict=True):
        assert trial.user_attrs["macs"] == macs_of(tiny, row[None])[0]
        assert "latency_ms" not in trial.user_attrs, "infinity is no JSON"


def unknown_latency(rows: Codes) -> np.ndarray:
    return np.full(len(rows), np.inf)


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_what_a_notebook_adds_counts(
    tiny: Space, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = str(tmp_path / "journal") if kind == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"
    worker = Worker(tiny, address)
    study = optuna.load_study(study_name="tiny-1", storage=open_studies(address))
    waiting, known, whole = (params_from_codes(tiny, row) for row in worker.rows[:3])
    study.enqueue_trial(waiting)
    study.add_trial(
        optuna.create_trial(
            value=0.75, params=known, distributions={k: distributions(tiny)[k] for k in known}
        )
    )
    study.enqueue_trial({name: whole.get(name, d.choices[0]) for name, d in distributions(tiny).items()})
    study.enqueue_trial({"resolution": 12})
    study.enqueue_trial({"resolution": 13})
    study.enqueue_trial(waiting | {"wdth[0]": 4})
    study.enqueue_trial(waiting)
    sampled = study.ask(distributions(tiny))
    assert len(study.trials) == 7, "ask takes the first enqueued trial"
    study.enqueue_trial(waiting)
    heard: list[float] = []
    found = worker.study.added(heard.append)
    assert found[worker.rows[1].tobytes()] == 0.75
    assert found[worker.rows[2].tobytes()] == worker.rows[2].sum() / 100
    assert len(found) == 4 and worker.rows[0].tobytes() in found
    assert sorted(heard) == sorted(found.values())
    assert len(worker.measured) == 3, "the same architecture is measured once"
    out = capsys.readouterr().out
    assert "enqueued trial 4 fails: resolution = 13 is not in space" in out
    assert "no parameter 'wdth[0]'; did you mean 'width[0]'?" in out
    trials = study.trials
    states = [t.state for t in trials]
    assert states.count(TrialState.FAIL) == 2 and states[0] == TrialState.RUNNING, "asked for by a notebook"
    assert "its choices are 8, 12" in trials[4].user_attrs["reason"]
    assert trials[3].params["resolution"] == 12 and trials[3].params.keys() >= {"depth[0]", "width[0]"}
    assert trials[2].params == whole and trials[6].value == trials[7].value
    study.tell(sampled, 0.5)
    assert worker.study.added(heard.append) == found, "its architecture was known already"
    assert len(worker.measured) == 3


def test_a_waiting_trial_without_parameters_is_not_guessed(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"))
    study = opened(tmp_path / "journal")
    study.add_trial(optuna.create_trial(state=TrialState.WAITING))
    assert worker.study.added(print) == {}
    assert study.trials[0].state == TrialState.FAIL
    assert "no parameters" in study.trials[0].user_attrs["reason"]


def test_a_failed_trial_is_measured_again(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"))
    worker.study._enqueue(worker.rows, [None] * 12)
    study = worker.study
    study.storage.set_trial_state_values(study._id_of(study.study.trials[0]), TrialState.FAIL)
    worker.run()
    Worker(tiny, str(tmp_path / "journal")).run()
    assert [t.state for t in worker.study.study.trials].count(TrialState.COMPLETE) == 12


def test_nothing_that_a_killed_process_left_stays_unfinished(tiny: Space, tmp_path: Path) -> None:
    dead = Worker(tiny, str(tmp_path / "journal"))
    dead.study._enqueue(dead.rows, [None] * 12)
    dead.study._claim(dead.study.study.trials[0])
    worker = Worker(tiny, str(tmp_path / "journal"))
    worker.study.finish()
    assert len(worker.study.known()) == len(worker.measured) == 12
    assert {t.state for t in worker.study.study.trials} == {TrialState.COMPLETE}


def test_a_trial_that_comes_while_duplicates_are_sought_is_left_alone(
    tiny: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, worker = Worker(tiny, str(tmp_path / "journal")), Worker(tiny, str(tmp_path / "journal"))
    before = worker.study._trials()
    monkeypatch.setattr(worker.study, "_trials", lambda: before)
    other.study._enqueue(other.rows[:1], [None])
    worker.study._finish_duplicates()
    assert [t.state for t in worker.study.study.trials] == [TrialState.WAITING]


def test_a_process_that_measures_in_no_time_waits_for_others(tiny: Space, tmp_path: Path) -> None:
    other, worker = Worker(tiny, str(tmp_path / "journal")), Worker(tiny, str(tmp_path / "journal"))
    row = other.rows[0]
    trial = other.study._enqueue(other.rows, [None] * 12)[row.tobytes()]
    assert other.study._claim(trial)
    later = threading.Timer(0.5, other.study._finish, (trial, row, float(row.sum()) / 100))
    later.start()
    worker.run()
    later.join()
    assert len(worker.measured) == 11 and row.tobytes() not in worker.measured


def share(space: Space, address: str, slow: float, ready: Event, out: str) -> None:
    """What the other process does."""
    worker = Worker(space, address, slow=slow)
    ready.set()
    worker.run()
    Path(out).write_text(str(len(worker.measured)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_share_the_work(tiny: Space, tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "journal") if kind == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"
    worker = Worker(tiny, address, slow=0.3)
    ready = FORKED.Event()
    other = FORKED.Process(target=share, args=(tiny, address, 0.3, ready, str(tmp_path / "count")))
    other.start()
    assert ready.wait(60)
    worker.run()
    other.join(60)
    theirs = int((tmp_path / "count").read_text())
    assert theirs > 0 and len(worker.measured) > 0
    assert 12 <= theirs + len(worker.measured) <= 14, "only the last claimed one may be measured twice"
    trials = worker.study.study.trials
    assert sum(t.state == TrialState.COMPLETE for t in trials) >= 12
    assert len({t.user_attrs["codes"] for t in trials}) == 12


@pytest.mark.slow
def test_a_killed_process_costs_one_measurement(tiny: Space, tmp_path: Path) -> None:
    address = str(tmp_path / "journal")
    worker = Worker(tiny, address)
    ready = FORKED.Event()
    other = FORKED.Process(target=share, args=(tiny, address, 0.5, ready, str(tmp_path / "count")))
    other.start()
    assert ready.wait(60) and other.pid
    while sum(t.state == TrialState.COMPLETE for t in worker.study.study.trials) < 2:
        time.sleep(0.05)
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    with Path(address).open("a") as file:
        file.write('{"op_code": 6, "wor')  # as a write that the kill cut off leaves it
    states = [t.state for t in worker.study.study.trials]
    left = 12 - states.count(TrialState.COMPLETE)
    assert states.count(TrialState.RUNNING) == 1, "what it was measuring"
    worker = Worker(tiny, address)
    worker.run()
    assert len(worker.measured) == left < 12
    assert {t.state for t in worker.study.study.trials} == {TrialState.COMPLETE}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_of_two_that_claim_at_once_one_gets_it(tiny: Space, tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "journal") if kind == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"
    workers = [Worker(tiny, address), Worker(tiny, address)]
    rows = sample_codes(tiny, 40, np.random.default_rng(1))
    workers[0].study._enqueue(list(np.unique(rows, axis=0)), [None] * len(np.unique(rows, axis=0)))
    trials = workers[0].study.study.trials
    together = threading.Barrier(2)

    def claims(worker: Worker) -> list[bool]:
        found = []
        for trial in trials:
            together.wait()
            found.append(worker.study._claim(trial))
        return found

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(claims, workers)
    assert len(trials) > 30
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * len(trials)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_finish_a_measurement_at_the_same_moment(
    tiny: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address = str(tmp_path / "journal") if kind == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"
    worker = Worker(tiny, address)
    write = worker.study.storage.set_trial_state_values

    def beaten(trial: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.COMPLETE:
            write(trial, state, values)  # the other process, after Optuna has looked and before it writes
        return write(trial, state, values)

    monkeypatch.setattr(worker.study.storage, "set_trial_state_values", beaten)
    worker.run()
    assert [t.state for t in worker.study.study.trials] == [TrialState.COMPLETE] * 12


def test_an_interruption_keeps_what_was_measured(tiny: Space, tmp_path: Path) -> None:
    worker = Worker(tiny, str(tmp_path / "journal"))

    def interrupted(row: Codes) -> float:
        if len(worker.measured) == 5:
            raise KeyboardInterrupt
        return Worker.accuracy(worker, row)

    worker.study.accuracy = interrupted
    with pytest.raises(KeyboardInterrupt):
        worker.run()
    again = Worker(tiny, str(tmp_path / "journal"))
    again.run()
    assert len(again.measured) == 7
    assert [file.name for file in tmp_path.iterdir()] == ["journal"]


@pytest.mark.parametrize("text", ['{"op_code":\n{}\n', "a\nb\n"])
def test_a_damaged_journal_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(UserError, match=r"journal' is damaged; delete it"):
        open_storage(str(tmp_path / "journal"))
    assert (tmp_path / "journal").read_text() == text


def test_opening_a_storage_leaves_optunas_verbosity_alone(tmp_path: Path) -> None:
    """Other tests run the command, which does change it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        open_storage(str(tmp_path / "journal"))
        open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    finally:
        optuna.logging.set_verbosity(before)
