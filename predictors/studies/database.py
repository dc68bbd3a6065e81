"""Databases that hold Optuna's studies: the driver of a URL, one process at a time, and trials in bulk."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models  # Optuna has no public way to add many trials in one transaction
from optuna.trial import FrozenTrial
from sqlalchemy import URL, Connection, Engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from engine.command.install import install_command
from engine.errors import UserError
from predictors.studies.patience import StorageFails, patiently

SQLITE_PATIENCE = 60  # seconds to wait for another process's transaction, which takes milliseconds
LOCK_PATIENCE = 600  # seconds to wait while another process adds its trials
LOCK_NAME = "ofa-toolkit"
LOCK_NUMBER = 0x6F6661  # the same for PostgreSQL, whose advisory locks have numbers: "ofa" as bytes
# Optuna's name for the version of its tables that `_insert_at_once` writes.
KNOWN_TABLES = "v3.2.0.a"
# Packages in the order in which they are tried, with the name that SQLAlchemy's URLs have for each.
DRIVERS = {
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2", "pg8000": "pg8000"},
    "mysql": {"pymysql": "pymysql", "MySQLdb": "mysqldb", "mysql.connector": "mysqlconnector"},
}
ALSO_CALLED = {"postgres": "postgresql", "mariadb": "mysql"}  # as URLs name them


def database_url(address: str) -> URL:
    """The URL with the driver that is installed: `postgresql://` and `mysql://` name none.

    Raises:
        UserError: no driver is installed; the sentence names the extra that has one.
    """
    url = make_url(address)
    kind = _kind(url)
    if kind not in DRIVERS or "+" in url.drivername:
        return url
    for package, driver in DRIVERS[kind].items():
        if find_spec(package.partition(".")[0]):
            return url.set(drivername=f"{kind}+{driver}")
    raise UserError(f"A storage {kind}:// needs a driver that is not installed; run {install_command(kind)}.")


def _kind(url: URL) -> str:
    """`postgresql`, `mysql`, `sqlite` or another kind of database, whatever its driver is."""
    name = url.drivername.partition("+")[0]
    return ALSO_CALLED.get(name, name)


def open_database(url: URL) -> tuple[RDBStorage, Callable[[], AbstractContextManager[None]]]:
    """The storage in a database, and what keeps other processes out while a block runs."""
    if _kind(url) == "sqlite":
        _check_sqlite(url)
    exclusive = partial(_exclusive, url)
    # Optuna fills in the braces of a URL.
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    # Of two processes that create tables at the same moment, one would fail. Programs that use Optuna
    # alone do not know the lock, so opening is also tried again.
    with exclusive():
        storage = patiently(RDBStorage, address)
    if _kind(url) == "sqlite":
        _lock_before_reading(storage.engine)
        with storage.engine.begin():
            pass  # it fails here, and not after minutes, if nothing can be written
    return storage, exclusive


def _check_sqlite(url: URL) -> None:
    """Refuse a path that cannot be a database, which SQLite reports without saying why."""
    if not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    if path.is_dir():
        raise UserError(f"The storage '{url}' is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"The storage '{url}' cannot be opened: there is no folder '{path.parent}'.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"The storage '{url}' cannot be opened: there is no permission to write there.")


def _exclusive(url: URL) -> AbstractContextManager[None]:
    kind = _kind(url)
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            return nullcontext()
        return _folder_lock(Path(url.database).parent)
    if kind in DRIVERS:
        return _server_lock(url, kind)
    return nullcontext()  # of other servers we know no lock: what Optuna does has to be enough


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """The lock on the folder of a SQLite database: a lock on the file itself is what SQLite works with."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _server_lock(url: URL, kind: str) -> Iterator[None]:
    """A lock that the server releases when the connection ends, so that no killed process keeps it.

    Raises:
        StorageFails: the server gives no lock, for the reason in the error.
    """
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    lock = _lock_postgresql if kind == "postgresql" else _lock_mysql
    with patiently(engine.connect) as connection:
        try:
            lock(connection)
        except DBAPIError as error:
            raise StorageFails(error) from None
        yield


def _lock_postgresql(connection: Connection) -> None:
    # Of a transaction, not of the session: poolers such as PgBouncer share sessions.
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": LOCK_NUMBER})


def _lock_mysql(connection: Connection) -> None:
    query = text("SELECT GET_LOCK(:name, :seconds)")
    # MySQL raises no error when the time is over: it returns 0.
    if connection.scalar(query, {"name": LOCK_NAME, "seconds": LOCK_PATIENCE}) != 1:
        raise StorageFails(TimeoutError(f"another process has locked it for {LOCK_PATIENCE} seconds"))


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


def insert_trials(storage: RDBStorage, study: int, trials: Sequence[FrozenTrial]) -> None:
    """Add trials to a study in one transaction; one by one Optuna takes 50 to 90 ms for each.

    Args:
        storage: of the study. If a later Optuna has given it other tables, trials are added one by one.
        study: its id.
        trials: what to add.
    """
    if storage.get_current_version() == KNOWN_TABLES:
        _insert_at_once(storage.engine, study, trials)
        return
    for trial in trials:
        storage.create_new_trial(study, trial)


def _insert_at_once(engine: Engine, study: int, trials: Sequence[FrozenTrial]) -> None:
    with Session(engine) as session, session.begin():
        # Under this lock Optuna numbers its own new trials too.
        models.StudyModel.find_or_raise_by_id(study, session, for_update=True)
        known = session.query(models.TrialModel).filter(models.TrialModel.study_id == study).count()
        rows = []
        for number, trial in enumerate(trials, start=known):
            row = models.TrialModel(study_id=study, number=number, state=trial.state)
            row.datetime_start, row.datetime_complete = trial.datetime_start, trial.datetime_complete
            rows.append(row)
        session.add_all(rows)
        session.flush()  # now they have ids, ascending as the numbers are
        parts: dict[type[models.BaseModel], list[dict[str, Any]]] = {}
        for row, trial in zip(rows, trials, strict=True):
            for table, columns in _parts(trial):
                parts.setdefault(table, []).append({"trial_id": row.trial_id} | columns)
        for table, lines in parts.items():
            session.execute(sqlalchemy.insert(table), lines)


def _parts(trial: FrozenTrial) -> Iterator[tuple[type[models.BaseModel], dict[str, Any]]]:
    """The values, parameters and attributes of a trial: a table, and the columns of a line in it."""
    for objective, value in enumerate(trial.values or ()):
        stored, value_type = models.TrialValueModel.value_to_stored_repr(value)
        yield models.TrialValueModel, {"objective": objective, "value": stored, "value_type": value_type}
    for name, param in trial.params.items():
        distribution = trial.distributions[name]
        stored = distribution.to_internal_repr(param)
        written = distribution_to_json(distribution)
        columns = {"param_name": name, "param_value": stored, "distribution_json": written}
        yield models.TrialParamModel, columns
    for key, value in trial.user_attrs.items():
        yield models.TrialUserAttributeModel, {"key": key, "value_json": json.dumps(value)}
    for key, value in trial.system_attrs.items():
        yield models.TrialSystemAttributeModel, {"key": key, "value_json": json.dumps(value)}
