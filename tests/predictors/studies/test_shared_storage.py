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

from engine.errors import UserError
from predictors.studies import database, patience
from predictors.studies.storage import open_storage, without_password

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


@pytest.mark.slow
def test_two_processes_open_an_empty_database_at_once(tmp_path: Path) -> None:
    program = "import sys; from predictors.studies.storage import open_storage; open_storage(sys.argv[1])"
    with server("postgresql") as address:
        words = [sys.executable, "-c", program, address]
        processes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        errors = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 3, errors


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "postgresql://me:topsecret@127.0.0.1:1/studies",
            "'postgresql://me:...@127.0.0.1:1/studies' cannot be",
        ),
        ("mysql://me:topsecret@127.0.0.1:1/studies", "'mysql://me:...@127.0.0.1:1/studies' cannot be opened"),
        ("journal+redis://:topsecret@127.0.0.1:1", "'journal.redis://:...@127.0.0.1:1' cannot be opened"),
        ("redis://:topsecret@127.0.0.1:1", "write journal.redis://... instead"),
        ("sqlite:////", "is a folder; name a file in it"),
        ("sqlite:////no/folder/studies.db", "there is no folder '/no/folder'"),
        ("nosuch://me:topsecret@db", "cannot be opened: Can't load plugin"),
        ("https://", "cannot be opened"),
        ("/", "'/' is no file; name a file"),
        ("/dev/null", "'/dev/null' is no file; name a file"),
        ("/no/folder/journal", "cannot be opened: No such file"),
    ],
)
def test_what_is_no_storage_is_refused_without_its_password(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "OPENINGS", 1)  # a server that is not there is not waited for
    monkeypatch.setattr(patience, "TRIES", 1)
    with pytest.raises(UserError, match=sentence) as raised:
        open_storage(address)
    assert "topsecret" not in str(raised.value)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_the_extra_with_the_driver_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "find_spec", no_package)
    with pytest.raises(UserError, match=rf"pip install 'ofa-toolkit\[{kind}\]'"):
        open_storage(f"{kind}://me:topsecret@db/studies")


def no_package(name: str) -> None:
    """No package is installed."""


def test_passwords_are_masked() -> None:
    masked = without_password("postgresql://me:a@b:c@db:5432/studies")
    assert masked == "postgresql://me:***@db:5432/studies"
    assert (
        without_password("mysql://db/x?user=me&password=s3&ssl=1")
        == "mysql://db/x?user=me&password=***&ssl=1"
    )
    assert without_password("sqlite:///studies.db") == "sqlite:///studies.db"
