"""Four processes on one storage, one of them killed: on files, and on servers where they are installed."""

import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import optuna
import pytest
import redis
import selecting
from forked import FORKED, SPAWNED, exit_codes
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import TrialState
from servers import server

from engine.command.install import install_command
from engine.errors import UserError
from predictors.studies import database, patience, storage
from predictors.studies.journal import JournalLock
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
    words = [(str(tiny_yaml), address, str(out)) for out in outs]
    processes = [FORKED.Process(target=selecting.main, args=w, daemon=True) for w in words[:3]]
    # With one kind is enough: what is chosen does not depend on the kind.
    last = SPAWNED.Process if address.endswith("/journal") else FORKED.Process
    processes.append(last(target=selecting.main, args=words[3], daemon=True))
    for process in processes:
        process.start()
    shared, trials = None, []
    # Once candidates are measured, the first process dies with whatever it has claimed.
    while len([t for t in trials if t.state == TrialState.COMPLETE]) <= selecting.PAIRS + 1:
        time.sleep(0.05)
        shared = shared or open_storage(address).optuna
        if selecting.NAME in [study.study_name for study in shared.get_all_studies()]:
            trials = shared.get_all_trials(shared.get_study_id_from_name(selecting.NAME))
        assert None in [p.exitcode for p in processes], "all have ended before one could be killed"
    processes[0].kill()
    assert exit_codes(processes) == [-signal.SIGKILL, 0, 0, 0]
    rows = selecting.rows_of(str(tiny_yaml))
    found = [json.loads(out.read_text()) for out in outs[1:]]
    best = max(rows, key=selecting.accuracy_of)
    assert [f["choice"] for f in found] == [best.tobytes().hex()] * 3
    assert [f["known"] for f in found] == [len(rows)] * 3
    assert shared is not None
    opened = optuna.load_study(study_name=selecting.NAME, storage=shared)
    assert {t.state for t in opened.trials} == {TrialState.COMPLETE}
    accuracies = {t.user_attrs["codes"]: t.value for t in opened.trials}
    assert len(opened.trials) == len(accuracies) == len(rows), "each architecture is one trial"
    assert accuracies == {row.tobytes().hex(): selecting.accuracy_of(row) for row in rows}
    assert [t.number for t in opened.trials] == list(range(len(rows)))
    if isinstance(shared, _CachedStorage):
        shared._backend.engine.dispose()  # open connections would warn, in whatever test runs then


@pytest.mark.slow
def test_processes_open_an_empty_database_at_once(tmp_path: Path) -> None:
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
    monkeypatch.setattr(patience, "TRIES", 1)  # a server that is not there is not waited for
    with pytest.raises(UserError, match=sentence) as raised:
        open_storage(address)
    assert "topsecret" not in str(raised.value)


@pytest.mark.parametrize(
    ("scheme", "extra"), [("postgresql", "postgresql"), ("mariadb", "mysql"), ("journal+redis", "redis")]
)
def test_the_extra_with_the_driver_is_named(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "find_spec", no_package)
    monkeypatch.setattr(storage, "find_spec", no_package)
    with pytest.raises(UserError, match=re.escape(install_command(extra))):
        open_storage(f"{scheme}://me:topsecret@db/studies")


def no_package(name: str) -> None:
    """No package is installed."""


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_every_name_of_mysql_has_the_lock(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TRIES", 1)
    url = database.database_url(f"{scheme}://me@127.0.0.1:1/studies")
    # It asks the server for the lock, which is not there.
    with pytest.raises(UserError, match="storage of studies fails"), database._exclusive(url):
        pass


@pytest.mark.parametrize("answer", [0, None])
def test_a_lock_that_mysql_does_not_give_is_an_error(answer: int | None) -> None:
    connection = Mock()
    connection.scalar.return_value = answer
    with pytest.raises(UserError, match="another process has locked it for 600 seconds"):
        database._lock_mysql(connection)


@pytest.mark.slow
def test_a_lock_in_redis_that_has_ended_is_no_error() -> None:
    with server("redis") as address:
        shared = open_storage(address)
        with redis.Redis.from_url(address.removeprefix("journal+")) as client, shared.exclusive():
            client.flushall()  # as if the time of the lock were over
        with shared.exclusive():
            pass


def test_an_interrupted_lock_of_a_journal_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journal").touch()
    lock = JournalLock(str(tmp_path / "journal"))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), lock.held():
            pass
    with lock.held(), (tmp_path / "journal").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
@pytest.mark.parametrize("tables", [database.KNOWN_TABLES, "v9.0.0.a"])
def test_tables_of_a_later_optuna_get_their_trials_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: str
) -> None:
    shared = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=shared.optuna, study_name="a")
    assert RDBStorage(f"sqlite:///{tmp_path / 'studies.db'}").get_current_version() == database.KNOWN_TABLES
    monkeypatch.setattr(RDBStorage, "get_current_version", Mock(return_value=tables))
    choices = {"depth": CategoricalDistribution((1, 2))}
    trials = []
    for depth in (1, 2):
        attributes = {"source": "pairs"}
        trials.append(
            optuna.create_trial(
                value=0.5, params={"depth": depth}, distributions=choices, user_attrs=attributes
            )
        )
    shared.insert(shared.optuna.get_study_id_from_name("a"), trials)
    assert [(t.number, t.params, t.value, t.user_attrs) for t in study.trials] == [
        (0, {"depth": 1}, 0.5, attributes),
        (1, {"depth": 2}, 0.5, attributes),
    ]
