"""The most memory that tensors take at once, counted without a device, and the memory that a device has.

On the meta device tensors have a shape and no numbers, so a step of any size can be counted in a second.
"""

import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MEMINFO = Path("/proc/meminfo")
# Of a container: version 2 of control groups, then version 1.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations inside it make, from their making to their end.

    Scratch space that a kernel takes for itself is not seen.

        with PeakMemory() as memory:
            network(x).sum().backward()
        memory.peak
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: set[int] = set()  # storages that are counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, and count what it made."""
        result = func(*args, **(kwargs or {}))
        # Operations give a tensor, or a few of them side by side; this runs ten thousand times a step.
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor):
                self._count(made)
        return result

    def _count(self, made: Tensor) -> None:
        """Count a storage once: views and in-place results share one."""
        storage = made.untyped_storage()
        # The address of the storage itself, which is the same for all tensors that share it.
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class DeviceMemory(NamedTuple):
    """Bytes of a device: all of them, and those that nobody uses now."""

    total: int
    free: int


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory of a CUDA device, or of this machine or container for the CPU; None where it is unknown."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free)
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    kilobytes = {}
    for line in MEMINFO.read_text().splitlines():
        name, value = line.split(":")
        kilobytes[name] = int(value.split()[0])
    total, free = 1024 * kilobytes["MemTotal"], 1024 * kilobytes["MemAvailable"]
    for path in LIMITS:
        # "max", or a number beyond all memory, means that there is no limit.
        if path.exists() and path.read_text().strip().isdigit():
            total = min(total, int(path.read_text()))
    return DeviceMemory(total, min(total, free))
