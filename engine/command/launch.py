"""What torchrun told this process, and which of torchrun's processes prints.

Nothing here imports torch, since commands ask before they import it.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

POLITE_SECONDS = 15.0  # ending a process that has torch in it takes seconds on a busy machine


def started() -> tuple[int, int]:
    """(rank, number of processes) that torchrun gave this one; (0, 1) without torchrun."""
    # The mark of torchrun. RANK and WORLD_SIZE alone may be there for other reasons.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def only_the_first_prints() -> Iterator[None]:
    """While the block runs, only the first rank prints; the output of the others goes nowhere."""
    if started()[0] == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def complain(sentence: str) -> None:
    """Print an error to stderr, once, though every rank meets the same error.

    The first rank prints and exits, and then torchrun ends the other ranks, which wait for that. A rank that
    is still alive after a while is the only one with this error, so it prints the error itself.
    """
    rank, _ = started()
    if rank:
        # Ctrl-C ends the wait at once; the command's own handler would end it with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        time.sleep(POLITE_SECONDS)
    where = f" on rank {rank}" if rank else ""
    print(f"error{where}: {sentence}", file=sys.stderr, flush=True)
