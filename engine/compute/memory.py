"""How much freed memory the process keeps for its next step.

Nothing here imports torch, since commands call it first.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT, GLIBC_DEFAULT = 2**30, 2**17  # bytes


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep freed blocks of up to 1 GiB, which it otherwise gives back to the kernel from 32 MiB on.

    Activations are of that size, and every step frees them and needs them again; faulting their pages in anew
    took a fifth to a third of a step on 128-pixel images (`benchmarks/supernet_step.py`). The price is a few
    percent of peak memory. Where the C library is not glibc, nothing happens.

    Args:
        keep: False restores glibc's default.
    """
    if sys.platform != "linux":
        return
    # musl, as in Alpine Linux, has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        size = KEPT if keep else GLIBC_DEFAULT
        mallopt(M_MMAP_THRESHOLD, size)
        mallopt(M_TRIM_THRESHOLD, size)
