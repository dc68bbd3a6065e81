"""Processes that need not import everything: forked from one that has, and that has done nothing else.

For tests of processes that share something or are killed. A process that has trained, as pytest's may have,
must not be forked itself.

All forked processes hash strings alike and start with the same numbers of NumPy's global generator, which
real ones do not. Where two must come to the same, one is pytest's own, or spawned where that cannot be.
"""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

SPAWNED = multiprocessing.get_context("spawn")
FORKED = multiprocessing.get_context("forkserver")
# The first two are what torch's optimisers and the embedded digits import when they are first used.
PRELOADED = ["torch._dynamo", "sklearn.datasets", "ofa.train", "predictors.select"]
FORKED.set_forkserver_preload(PRELOADED)


def exit_codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    """How processes ended; None is one that hung, and is killed."""
    try:
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
