"""Ctrl-C and SIGTERM as a request to stop after the current step, so that nothing is lost or half-written."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from engine.command.launch import started
from engine.errors import WorkerDied

T = TypeVar("T")


def quiet_start() -> None:
    """Called by the packages' `__init__`: Ctrl-C while `python -m` still imports ends the process without a
    traceback."""
    if sys.argv[:1] == ["-m"]:  # only then is a command being started; nothing is open or half-written yet
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt at the first SIGINT; the ones after it are ignored, so that none lands in the
    clean-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


class Stop:
    """`requested` turns true at the first signal; more of them change nothing."""

    requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.requested and started()[0] == 0:
            print("\nstopping after this step; what is done is kept", file=sys.stderr)
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """While the block runs, SIGINT and SIGTERM only set `requested`. Use it in the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_stopped(batches: Iterator[T], stop: Stop) -> Iterator[T]:
    """`batches`; a signal that ended one of their workers, too, ends them instead of being an error."""
    try:
        yield from batches
    except WorkerDied:
        if not stop.requested:
            raise
