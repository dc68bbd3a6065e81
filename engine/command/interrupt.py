"""Signals as a request to stop after the current step, so that nothing is lost or half-written.

They are Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which a process gets when its terminal is gone, as when an ssh
connection breaks.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from engine.command.launch import started
from engine.errors import WorkerDied

T = TypeVar("T")


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt at the first SIGINT and ignore later ones, which would break the clean-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


class Stop:
    """A signal handler whose `requested` turns true at the first signal; later ones change nothing."""

    requested = False

    def __init__(self) -> None:
        # Looked up now: once a terminal is gone nothing tells that it was one.
        self.terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def time_is_up(self) -> None:
        """Request the stop because of `--stop-after`."""
        if not self.requested and started()[0] == 0:
            print("the time of --stop-after is over: stopping after this step", file=sys.stderr)
        self.requested = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # Every print to a terminal that is gone would raise an error, before anything was saved.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in self.terminals:
                os.dup2(nowhere, stream)
            os.close(nowhere)
        if not self.requested and started()[0] == 0:
            print("\nstopping after this step; what is done is kept", file=sys.stderr)
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """While the block runs, SIGINT, SIGTERM and SIGHUP only set `requested` of the yielded `Stop`.

    Where SIGHUP is ignored, as under nohup, it stays ignored.

    It works in the main thread only, since Python lets no other thread set signal handlers.
    """
    stop = Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with _handled_by(stop, numbers), _dead_workers_wait_for_the_next_batch():
        yield stop


@contextmanager
def signals_wait() -> Iterator[None]:
    """While the block runs, SIGINT, SIGTERM and SIGHUP wait; they are sent again when it ends.

    Blocking them would not do: the system then gives them to another thread, and Python still raises here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # a handler runs in the main thread only
        return
    waiting: list[int] = []
    try:
        with _handled_by(
            lambda number, _: waiting.append(number), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ):
            yield
    finally:
        for number in waiting:
            os.kill(os.getpid(), number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], numbers: Sequence[int]) -> Iterator[None]:
    """While the block runs, these signals call `handler`; then the handlers before it are back."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def _dead_workers_wait_for_the_next_batch() -> Iterator[None]:
    """While the block runs, a dead data worker is noticed when the next batch is taken, and only then.

    With its first workers torch installs a SIGCHLD handler that raises in whatever the main process is doing,
    be it in the middle of an update. Taking a batch notices a dead worker too. torch has no switch for this,
    only the mark by which it remembers that its handler is installed.
    """
    from torch.utils.data._utils import signal_handling

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    installed = signal_handling._SIGCHLD_handler_set
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = installed
        signal.signal(signal.SIGCHLD, handler)


def until_stopped(batches: Iterator[T], stop: Stop) -> Iterator[T]:
    """`batches`, which end early if the signal that requested the stop also ended one of their workers."""
    try:
        yield from batches
    except WorkerDied:
        if not stop.requested:
            raise
