"""Where the trials of studies are: a journal in a file or in Redis, or a database, shared by processes."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from engine.command.install import install_command
from engine.command.start import without_password
from engine.errors import UserError
from predictors.studies.database import database_url, insert_trials, open_database
from predictors.studies.journal import JournalLock, SharedJournal
from predictors.studies.patience import StorageFails, patiently

REDIS = "journal+redis://"
REDIS_LOCK_SECONDS = 60  # after which the lock of a killed process ends; adding trials takes less


class SharedStorage(NamedTuple):
    """An Optuna storage that processes share.

    optuna: the storage, for Optuna's own functions.
    exclusive: keeps other processes out while a block runs: what they add is seen before or after it. A
        killed process keeps nobody out.
    insert: adds trials to the study with an id, in one go.
    """

    optuna: BaseStorage
    exclusive: Callable[[], AbstractContextManager[Any]]
    insert: Callable[[int, Sequence[FrozenTrial]], None]


def open_storage(address: str) -> SharedStorage:
    """A database by URL (`sqlite:///studies.db`), a journal in Redis by URL, or a journal by its path.

    Raises:
        UserError: it is damaged, cannot be reached, or needs a package that is not installed. No sentence
            shows the password in a URL.
    """
    shown = without_password(address)
    try:
        if address.startswith(REDIS):
            return _redis_journal(address)
        if address.startswith(("redis://", "rediss://")):
            raise UserError(f"Optuna keeps journals in Redis: write journal+redis://... instead of {shown}.")
        if "://" in address:
            storage, exclusive = open_database(database_url(address))
            # Optuna's cache: without it every reading would fetch all trials from the database.
            return SharedStorage(get_storage(storage), exclusive, partial(insert_trials, storage))
        if Path(address).exists() and not Path(address).is_file():
            raise UserError(f"The storage '{shown}' is no file; name a file for the journal of studies.")
        lock = JournalLock(address)
        journal = SharedJournal(JournalFileBackend(address, lock), lock.held)
        with lock.held():  # it fails here, and not after minutes, if nothing can be written
            return _journal(journal)
    except StorageFails as error:
        raise UserError(f"The storage '{shown}' cannot be opened: {_reason(error, address)}") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError):
        if "://" in address:
            raise UserError(f"The storage '{shown}' cannot be opened: it is no URL of a database.") from None
        raise UserError(
            f"The journal of studies '{shown}' is damaged; delete it, or name another file if it is "
            "no journal (a database is a URL: sqlite:///studies.db)."
        ) from None
    except (ImportError, OSError, RuntimeError, SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"The storage '{shown}' cannot be opened: {_reason(error, address)}") from None


def open_studies(address: str) -> BaseStorage:
    """The storage of predictors.select for Optuna's functions, with the locks that select itself uses.

        study = optuna.load_study(study_name="digits-1a2b3c4d-600M", storage=open_studies("optuna.journal"))

    Args:
        address: what --storage names, or the `optuna.journal` of a run.

    Raises:
        UserError: as `open_storage` does.
    """
    return open_storage(address).optuna


def _journal(journal: SharedJournal) -> SharedStorage:
    storage = JournalStorage(journal)

    def insert(study: int, trials: Sequence[FrozenTrial]) -> None:
        # The first one by itself: Optuna looks for the number of the last trial that this process created.
        for trial in trials[:1]:
            storage.create_new_trial(study, trial)
        with journal.bulk():
            for trial in trials[1:]:
                storage.create_new_trial(study, trial)

    return SharedStorage(storage, journal.exclusive, insert)


def _redis_journal(address: str) -> SharedStorage:
    """The journal in Redis at `journal+redis://host:6379/0`."""
    if not find_spec("redis"):
        command = install_command("redis")
        raise UserError(f"A storage {REDIS} needs a package that is not installed; run {command}.")
    import redis

    url = address.removeprefix("journal+")
    client = redis.Redis.from_url(url)

    @contextmanager
    def exclusive() -> Iterator[None]:
        lock = client.lock("ofa-toolkit:lock", timeout=REDIS_LOCK_SECONDS)
        patiently(lock.acquire)
        try:
            yield
        finally:
            # If the lock has ended before, or the server cannot be reached, there is nothing to release.
            # Two processes may then have added the same trials, which get the same accuracy in the end.
            with suppress(redis.RedisError):
                lock.release()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend = JournalRedisBackend(url, prefix="ofa-toolkit")
    return patiently(_journal, SharedJournal(backend, exclusive))


def _reason(error: BaseException, address: str) -> str:
    """The first line of an error, without the passwords of the address."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    if isinstance(error, StorageFails):
        text = error.reason
    reason = (text.strip().splitlines() or [type(error).__name__])[0]
    for secret in re.findall(r"://[^:/@]*:(.+)@|[?&]\w*pass\w*=([^&]+)", address):
        reason = reason.replace(secret[0] or secret[1], "***")
    return reason
