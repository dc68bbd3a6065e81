"""Progress with rate and remaining time: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """`with progress("train", steps) as advance: advance("loss 0.3")` once for each of `total` steps."""
    console = Console(stderr=True)
    bar = _bar(console, what, total, done) if console.is_terminal else _lines(console, what, total, done)
    with bar as advance:
        yield advance


@contextlib.contextmanager
def _bar(console: Console, what: str, total: int, done: int) -> Iterator[Advance]:
    started, first = time.monotonic(), done
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(what, total=total, completed=done, note="", rate="")
        count = done

        def advance(note: str) -> None:
            nonlocal count
            count += 1
            rate = (count - first) / max(time.monotonic() - started, 1e-9)
            bars.update(task, advance=1, note=note, rate=f"{rate:.3g}/s")

        yield advance


@contextlib.contextmanager
def _lines(console: Console, what: str, total: int, done: int) -> Iterator[Advance]:
    started = last = time.monotonic()
    first = count = done

    def advance(note: str) -> None:
        nonlocal count, last
        count += 1
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS or (count == total and now - started > 2):
            last = now
            rate = (count - first) / (now - started)
            left = (total - count) / rate
            console.print(f"{what} {count}/{total}  {rate:.3g}/s  {left:.0f} s left  {note}", highlight=False)

    yield advance
