"""Processes that need not import everything: forked from one that has, and that has done nothing else.

For tests of processes that share something or are killed. A process that has trained, as pytest's may have,
must not be forked itself.
"""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
# The first two are what torch's optimisers and the embedded digits import when they are first used.
PRELOADED = ["torch._dynamo", "sklearn.datasets", "ofa.train", "predictors.select"]
FORKED.set_forkserver_preload(PRELOADED)
