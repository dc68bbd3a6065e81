"""Replace a run by another without a moment at which a killed process would leave neither.

The files of the old run move into a folder beside them, which is removed when the new run has its
configuration. Whoever locks the run next finishes or undoes what a killed process began.
"""

from collections.abc import Set
from pathlib import Path

from engine.runs.writing import publish, remove, sync

REPLACING = ".run-to-put-back"  # holds what is to be put back if nothing follows
REPLACED = ".run-to-remove"  # holds what is no longer wanted


def replace_run(folder: Path, old: Set[str], new: Path) -> None:
    """Replace the files of a run.

    Args:
        folder: the run folder.
        old: names of what is replaced; everything else stays.
        new: folder in the same file system with the first files of the new run.

    Raises:
        OSError: a file cannot be moved; the old run is as it was.
    """
    if not old:
        _move_in(new, folder)
        return
    aside = folder / REPLACING
    try:
        aside.mkdir()
        # From the first moment on this is no finished run, and up to the last one it is a run.
        for name in sorted(old, key=_done_first):
            # A rename also moves a link as a link, and a folder whatever is in it.
            (folder / name).rename(aside / name)
        _move_in(new, folder)
        aside.rename(folder / REPLACED)
    except OSError:
        recover(folder)
        raise
    sync(folder)
    remove(folder / REPLACED)


def recover(folder: Path) -> None:
    """Put back the old run if its replacement came to no end; else remove what is left of it."""
    aside = folder / REPLACING
    if aside.is_dir():
        for entry in sorted(aside.iterdir(), key=_done_last):
            remove(folder / entry.name)
            entry.rename(folder / entry.name)
        aside.rmdir()
    remove(folder / REPLACED)


def _move_in(new: Path, folder: Path) -> None:
    # config.yaml last: with it the folder is a run, which can be continued.
    for file in sorted(new.iterdir(), reverse=True):
        publish(file, folder / file.name)


def _done_first(name: str) -> tuple[bool, bool]:
    return name != "DONE", name == "config.yaml"


def _done_last(entry: Path) -> bool:
    return entry.name == "DONE"
