"""How much freed memory the process keeps for its next step. Imports no torch: commands call it first."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT, GLIBC_DEFAULT = 2**30, 2**17


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep freed blocks of up to 1 GiB, which it otherwise gives back to the kernel from 32 MiB on.

    Activations are of that size and are freed and wanted again in every step; faulting their pages in anew
    took a fifth to a third of a step on 128-pixel images (`benchmarks/supernet_step.py`). Costs a few percent
    of peak memory. Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        size = KEPT if keep else GLIBC_DEFAULT
        mallopt(M_MMAP_THRESHOLD, size)
        mallopt(M_TRIM_THRESHOLD, size)
