"""A journal of Optuna, in a file or in Redis, that processes share and that survives any of them."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

RECORD = b'{"op_code"'  # how a line of Optuna's journal starts


class SharedJournal(BaseJournalBackend):
    """A journal with a lock that is held over several reads and writes, and with writes in bulk.

    It keeps no snapshots, which Optuna would store in Redis as pickles: whoever can write there could run
    code here.

    Args:
        backend: where the records are.
        exclusive: what keeps other processes out while a block runs.
    """

    def __init__(
        self, backend: BaseJournalBackend, exclusive: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.backend, self.exclusive = backend, exclusive
        self._held: list[dict[str, Any]] | None = None  # records that wait until a block of `bulk` ends

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The records from a number on."""
        return self.backend.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records after the last one."""
        if self._held is None:
            self.backend.append_logs(logs)
        else:
            self._held.extend(logs)

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Write the records of the block in one go, after it: a thousand trials take as long as one."""
        self._held = []
        try:
            yield
        finally:
            records, self._held = self._held, None
            if records:
                self.backend.append_logs(records)


class JournalLock(JournalFileOpenLock):
    """A lock of the operating system on the journal, which ends with its process.

    Optuna's own locks are files: a killed process leaves them behind, and others wait for them. The process
    that acquires this lock also removes the half line that a killed writer may have left. Who holds it may
    acquire it again, so that several writes can be made under one lock.
    """

    def __init__(self, journal: str) -> None:
        self.journal = Path(journal)
        self.depth = 0  # how often this process has acquired it and not released it

    def acquire(self) -> bool:
        """Wait until no other process has the lock."""
        if not self.depth:
            handle = os.open(self.journal, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                _cut_torn_record(handle)
            except BaseException:
                # A notebook goes on after an interruption, and must not take the lock for acquired.
                os.close(handle)
                raise
            self.handle = handle
        self.depth += 1
        return True

    def release(self) -> None:
        """Let the next process in, if this one has released it as often as it has acquired it."""
        self.depth -= 1
        if not self.depth:
            os.close(self.handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock while the block runs."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _cut_torn_record(handle: int) -> None:
    """Remove the half record that a killed process may have left at the end of the journal.

    Anything else is damage: it stays as it is, and `open_storage` reports it.
    """
    size = os.fstat(handle).st_size
    # The last MiB is enough to look at, since a record is much shorter.
    tail = os.pread(handle, 2**20, max(0, size - 2**20))
    after_last_line = tail[tail.rfind(b"\n") + 1 :]
    if after_last_line and RECORD.startswith(after_last_line[: len(RECORD)]):
        os.ftruncate(handle, size - len(after_last_line))
