"""What torchrun told this process, and which of its processes prints. Used before torch is imported."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

POLITE_SECONDS = 15.0  # ending a process that has torch in it takes seconds on a busy machine


def started() -> tuple[int, int]:
    """(rank, number of processes) that torchrun gave this one; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def only_the_first_prints() -> Iterator[None]:
    """While the block runs, whatever ranks other than the first print goes nowhere."""
    if started()[0] == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def complain(sentence: str) -> None:
    """Print an error once, though every rank meets the same error.

    The first rank prints and exits, and then torchrun ends the other ranks, which wait for that. A rank that
    is still alive after a while is the only one with its error, so it prints it.
    """
    rank, _ = started()
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        time.sleep(POLITE_SECONDS)
    where = f" on rank {rank}" if rank else ""
    print(f"error{where}: {sentence}", file=sys.stderr, flush=True)
