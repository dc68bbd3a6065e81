"""Files that are whole or not there, also after a power cut: written aside, brought to the disk, renamed.

A rename is one step of the file system, but without fsync it may reach the disk before the bytes of the file
do. So the file is brought to the disk before the rename and its folder after it. What a killed process left
aside has a name that `remove_leftovers` knows.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path

# The names that this module gives to what is not finished yet, and safetensors in turn (.tmpaB3dE9). No
# user's file in a run folder is called so.
PART = re.compile(r"\.(.+\.)?[a-z0-9_]{8}\.part|\.tmp[A-Za-z0-9]{6}")
OLD = re.compile(r"\.(.+)\.old\.part")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if the block succeeds and vanishes if it does not.

    The file gets the permissions that any new file gets from the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since no file can be renamed into another file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # Not mkstemp, which lets nobody but the owner read the file, whatever the umask says.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        # safetensors makes a file of its own in this place, for the owner alone.
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the files that are made in it; it vanishes with whatever is left in it."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".part", ".", parent) as name:
        yield Path(name)


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file its name, after its bytes are on the disk."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def publish_folder(new: Path, path: Path) -> None:
    """Give a complete folder its name; a folder that is there is replaced.

    Args:
        new: the folder, with no folders in it, in the same file system.
        path: its name.
    """
    for file in new.iterdir():
        sync(file)
    sync(new)
    # A folder cannot be replaced by a rename while it holds files, so the old one moves out of the way. If
    # the process is killed between the two renames, `remove_leftovers` brings the old one back.
    old = path.with_name(f".{path.name}.old.part")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    new.replace(path)
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some network file systems have no fsync of folders. Of a file, an error means lost bytes.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, inside: Set[str] | None = None) -> None:
    """Remove what killed processes left unfinished in a folder.

    Only who holds the lock of the run may do this: another writer's files look the same.

    Args:
        folder: the folder.
        inside: names of folders in it where the same is done, unless they are other runs; None: all.
    """
    for entry in list(folder.iterdir()):
        if PART.fullmatch(entry.name):
            remove(entry)
        elif match := OLD.fullmatch(entry.name):
            place = entry.with_name(match[1])
            if place.exists():
                remove(entry)
            else:
                entry.replace(place)
        elif (inside is None or entry.name in inside) and _is_part_of_run(entry):
            remove_leftovers(entry)


def _is_part_of_run(path: Path) -> bool:
    """Whether it is a folder, and neither a link nor a run of its own."""
    return path.is_dir() and not path.is_symlink() and not (path / "config.yaml").exists()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; links in it are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
