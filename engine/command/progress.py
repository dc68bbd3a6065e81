"""Progress with rate and remaining time.

On a terminal it is a bar; elsewhere it is plain lines, which come more and more rarely.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.command.launch import started

PLAIN_SECONDS = 10.0  # least time between two plain lines
Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show how far some work is.

        with progress("train", steps) as advance:
            advance("loss 0.3")  # once for each step; an empty note keeps the last one

    Work of less than two seconds prints no plain line.

    Args:
        what: the name of the work.
        total: steps in all.
        done: steps that were made before, by an interrupted process.
    """
    # stderr, so that the results of a command can be redirected without its progress.
    console = Console(stderr=True, quiet=started()[0] > 0, markup=False, emoji=False)
    bar = _bar(console, what, total, done) if console.is_terminal else _lines(console, what, total, done)
    with bar as advance:
        yield advance


@contextlib.contextmanager
def _bar(console: Console, what: str, total: int, done: int) -> Iterator[Advance]:
    started, first = time.monotonic(), done
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # On a terminal prints appear above the bar; output that the user redirected must stay where it goes.
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bars:
        task = bars.add_task(what, total=total, completed=done, note="", rate="")
        count, known = done, ""

        def advance(note: str) -> None:
            nonlocal count, known
            count, known = count + 1, note or known
            rate = (count - first) / max(time.monotonic() - started, 1e-9)
            bars.update(task, advance=1, note=known, rate=f"{rate:.3g}/s")

        yield advance


@contextlib.contextmanager
def _lines(console: Console, what: str, total: int, done: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    first = count = done
    known = ""

    def advance(note: str) -> None:
        nonlocal count, last, known
        count, known = count + 1, note or known
        now = time.monotonic()
        # From 500 s on the pause grows with the time spent: ten hours print some 260 lines instead of 3,600.
        pause = max(PLAIN_SECONDS, 0.02 * (now - started))
        if now - last >= pause or (count == total and now - started > 2):
            last = now
            rate = (count - first) / (now - started)
            left = (total - count) / rate
            console.print(
                f"{what} {count}/{total}  {rate:.3g}/s  {left:.0f} s left  {known}", highlight=False
            )

    yield advance
