"""One writer for a run folder: a lock that the operating system holds, and frees when its process ends.

Every command that writes into a run folder holds the lock while it runs; readers need none. It is flock on
the file `.lock` in the folder, which says who holds it. Linux passes flock on to the server of a network file
system; where a file system has no locks, one line says so.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from engine.command.interrupt import signals_wait
from engine.command.start import command_line
from engine.errors import UserError
from engine.run import RUN_FILES, foreign_names
from engine.runs.aside import recover
from engine.runs.writing import remove_leftovers

LOCK = ".lock"
DEEPEST = 2  # levels of folders in a run: RUN/tuned/NAME, RUN/export/NAME
LONGEST = 200  # characters of a command line in a sentence
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_held: set[int] = set()  # descriptors of the locks of this process


def _close_in_child() -> None:
    """Let a forked process, such as a data worker, not hold the locks of its parent."""
    # Closing frees nothing of the parent's. A worker that outlives a killed parent must not keep its lock.
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def write_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Be the only writer of a run folder while the block runs; the folder is made if there is none.

    What killed processes left unfinished is removed first.

    Args:
        folder: the run folder.
        shared: let others write that also share. They must protect from each other what they write.

    Raises:
        UserError: another process writes there, or the folder cannot be written.
    """
    around = run_around(folder.resolve().parent)
    if around is not None:
        # A run inside another one, such as a tuned subnet: nobody may replace that one in the meantime.
        with write_lock(around, shared=True), _lock(folder, shared):
            yield
    else:
        with _lock(folder, shared):
            yield


def run_around(path: Path) -> Path | None:
    """The run folder that `path` is or lies in, such as RUN for RUN/export; None: there is none."""
    for folder in (path, *path.parents[:DEEPEST]):
        # config.yaml alone may be anybody's.
        if (folder / "config.yaml").exists() and (folder / "env.json").exists():
            return folder
    return None


@contextlib.contextmanager
def _lock(folder: Path, shared: bool) -> Iterator[None]:
    """The lock of one folder while the block runs."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open(folder, shared)
    except OSError as error:
        raise UserError(
            f"Run folder '{folder}' cannot be written ({error.strerror}); make it writable, or name another."
        ) from None
    _held.add(handle)
    try:
        yield
    finally:
        _release(handle, folder)
        # A command that was refused leaves no empty folders behind.
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


def _open(folder: Path, shared: bool) -> int:
    """The descriptor of the lock, which this process now holds."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            # The holder before may have removed the file since it was opened: then this is a lock on nothing.
            if _take(handle, shared, folder):
                _write_who(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take(handle: int, shared: bool, folder: Path) -> bool:
    """Take the lock, and tidy up the folder if nobody else shares it.

    Returns:
        Whether what was taken is the lock of the folder.
    """
    path = folder / LOCK
    try:
        # Alone if possible, also to share: only then nothing unfinished can be of a living process.
        alone = _is_free(handle, fcntl.LOCK_EX)
        if not alone and not (shared and _is_free(handle, fcntl.LOCK_SH)):
            raise UserError(_who_writes(handle, folder))
        if not _is_at(handle, path):
            return False
        if alone:
            recover(folder)
            # --out may name a folder of the user's own by mistake, which stays as it is.
            if not foreign_names({entry.name for entry in folder.iterdir()}):
                remove_leftovers(folder, RUN_FILES)
            if shared and not _is_free(handle, fcntl.LOCK_SH):
                raise UserError(_who_writes(handle, folder))
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(
            f"the file system of '{folder}' has no locks: make sure yourself that nothing else writes there",
            file=sys.stderr,
        )
    return True


def _is_free(handle: int, how: int) -> bool:
    """Take the lock if it is free for that."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _write_who(handle: int) -> None:
    who = {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": command_line(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(who) + "\n").encode(), 0)


def _who_writes(handle: int, folder: Path) -> str:
    """The sentence about the process that holds the lock."""
    try:
        who = json.loads(os.pread(handle, 10_000, 0))
        since = datetime.fromisoformat(who["since"])
        command = " ".join(who["command"].split())[:LONGEST]
        found = f"process {who['pid']} on {who['host']} ({command}, since {since:%Y-%m-%d %H:%M})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = "another process"  # it has taken the lock this very moment
    return (
        f"Run folder '{folder}' is being written by {found}; wait until it ends or stop it, or work in "
        "another folder."
    )


def _release(handle: int, folder: Path) -> None:
    """Free the lock, and remove its file if nobody else shares it."""
    # A second Ctrl-C in between would leave the file behind.
    with signals_wait():
        _held.discard(handle)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, folder / LOCK):
                (folder / LOCK).unlink()
        os.close(handle)
