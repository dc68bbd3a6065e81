"""Four processes on one storage, one of them killed: on files, and on servers where they are installed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import selecting
from optuna.trial import TrialState
from servers import server

from predictors.studies.storage import open_storage

KINDS = ["journal", "sqlite", "postgresql", "mysql", "redis"]


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the kind of storage that the test is for is empty."""
    kind = request.param
    if kind == "journal":
        yield str(tmp_path / "journal")
    elif kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'studies.db'}"
    else:
        with server(kind) as found:
            yield found


@pytest.mark.slow
@pytest.mark.parametrize("address", KINDS, indirect=True)
def test_of_four_processes_one_is_killed_and_nothing_is_lost(
    address: str, tiny_yaml: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"out{i}.json" for i in range(4)]
    processes = []
    for out in outs:
        words = [sys.executable, selecting.__file__, str(tiny_yaml), address, str(out)]
        processes.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    shared, trials = None, []
    # Once candidates are measured, the first process dies with whatever it has claimed.
    while len([t for t in trials if t.state == TrialState.COMPLETE]) <= selecting.PAIRS + 1:
        time.sleep(0.05)
        shared = shared or open_storage(address).optuna
        if selecting.NAME in [study.study_name for study in shared.get_all_studies()]:
            trials = shared.get_all_trials(shared.get_study_id_from_name(selecting.NAME))
        assert [p.poll() for p in processes] != [0] * 4
    os.kill(processes[0].pid, signal.SIGKILL)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [p.returncode for p in processes[1:]] == [0] * 3, errors
    rows = selecting.rows_of(str(tiny_yaml))
    found = [json.loads(out.read_text()) for out in outs[1:]]
    best = max(rows, key=selecting.accuracy_of)
    assert [f["choice"] for f in found] == [best.tobytes().hex()] * 3
    assert [f["known"] for f in found] == [len(rows)] * 3
    opened = optuna.load_study(study_name=selecting.NAME, storage=open_storage(address).optuna)
    assert {t.state for t in opened.trials} == {TrialState.COMPLETE}
    accuracies = {t.user_attrs["codes"]: t.value for t in opened.trials}
    assert len(opened.trials) == len(accuracies) == len(rows), "each architecture is one trial"
    assert accuracies == {row.tobytes().hex(): selecting.accuracy_of(row) for row in rows}
    assert [t.number for t in opened.trials] == list(range(len(rows)))
