"""List run folders, and delete those that are no longer needed."""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.table import show
from engine.errors import UserError, nearest
from engine.runs.listing import RunSummary, delete_run, find_runs
from engine.runs.lock import write_lock


class Runs(Command):
    """List run folders, newest first: what each is, how far, how good, how large.

    best and last: the highest validation accuracy of all, and of the last evaluation. --delete asks before it
    deletes; it deletes what commands wrote, and leaves files of your own in the folder.

    examples:
      python -m engine.runs
      python -m engine.runs --folder experiments --json
      python -m engine.runs --delete supernet,old/photos
    """

    main_flags: ClassVar[tuple[str, ...]] = ("--folder", "--delete", "--yes", "--json")

    folder: Path = Field(Path("runs"), description="where to look, folders in it included")
    delete: tuple[str, ...] = Field((), description="delete these runs, named as in the list, with commas")
    yes: bool = Field(False, description="delete without asking")
    as_json: bool = Field(False, alias="json", description="print JSON instead of a table")

    @field_validator("delete", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    def execute(self) -> int:
        """List or delete."""
        if not self.folder.is_dir():
            raise UserError(f"There is no folder '{self.folder}'; name one with --folder.")
        runs = find_runs(self.folder)
        if self.delete:
            return self._delete({run.name: run for run in runs})
        if self.as_json:
            print(json.dumps([_json(run) for run in runs], indent=2))
        elif runs:
            show(_table(runs))
        else:
            print(f"no runs in '{self.folder}'")
        return 0

    def _delete(self, runs: dict[str, RunSummary]) -> int:
        """Delete the named runs if the user agrees: 0, or 1 if not."""
        for name in self.delete:
            if name not in runs:
                raise UserError(f"'{name}' is no run folder in '{self.folder}'; {nearest(name, runs)}")
        named = [runs[name] for name in dict.fromkeys(self.delete)]
        show(_table(named))
        size = format_bytes(sum(run.bytes for run in named))
        if not self.yes and not _agrees(f"Delete {len(named)} of {len(runs)} runs, {size}? [y/N] "):
            print("nothing was deleted")
            return 1
        for run in named:
            with write_lock(run.path):
                left = delete_run(run.path)
            print(f"deleted {run.path}" + (f", but not {', '.join(left)} in it" if left else ""))
        return 0


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nobody is there to be asked whether to delete; add --yes.")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _table(runs: list[RunSummary]) -> Table:
    table = Table("run", "kind", "state", "data", "best", "last", "holds", "size", "changed")
    for run in runs:
        table.add_row(
            run.name,
            run.kind,
            run.state,
            run.data,
            _percent(run.best),
            _percent(run.last),
            run.holds,
            format_bytes(run.bytes),
            f"{run.changed:%Y-%m-%d %H:%M}",
        )
    return table


def _json(run: RunSummary) -> dict[str, Any]:
    changed = run.changed.isoformat(timespec="seconds")
    return run._asdict() | {"path": str(run.path), "changed": changed}


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.1f}%"


def format_bytes(size: int) -> str:
    """1234567 -> `1.2 MB`; units of 1,000, as disks are sold and `du --si` counts."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


if __name__ == "__main__":
    main(Runs)
