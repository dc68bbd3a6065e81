"""A GPU that is not there, for tests on machines without one.

    with pretended_gpu(ROOT) as gpu:
        step()                      # the caches of a first step
        with gpu.record():
            step()
    assert not gpu.syncs            # how often the host waited, by `file:line function  why`

`gpu.copies` are the copies that nobody waits for, `gpu.ops` the operations on the device by name, `gpu.mixed`
the mixtures of devices, each of which also raises `Mixed`. Inside the block `cuda` is there for torch and for
the commands: tensors are real, computed by the CPU, and say that they are on `cuda:0`.

It proves where tensors are and when the host waits. It proves nothing of kernels, of speed, of memory, or of
how a GPU rounds; and a graph of CUDA cannot be captured (`torch.cuda.CUDAGraph` raises).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.utils.clip_grad as clip_grad
import torch.optim.optimizer as optimizer
from pretended_record import Gpu, Mixed
from pretended_tensors import CPU, CUDA, OnCalls, OnTensors, on_gpu, where
from torch import Tensor

__all__ = ["CUDA", "Gpu", "Mixed", "on_gpu", "pretended_gpu", "where"]
MEMORY = 80 * 2**30  # bytes that the device says it has


class Generator(torch.Generator):
    """Draws on the CPU and says that it is elsewhere."""

    pretended = "cpu"

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.pretended = torch.device(device).type
        return made

    def __init__(self, device: Any = "cpu"):
        super().__init__()

    @property
    def device(self) -> torch.device:
        return CUDA if self.pretended == "cuda" else CPU


class Autocast(torch.autocast):
    """The CPU's mixed precision in place of the GPU's: the same layers compute in bfloat16."""

    def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None):
        super().__init__("cpu", dtype, enabled, cache_enabled)


class Stream:
    """A queue of work, all of which is done when it is queued."""

    gpu: Gpu

    def __init__(self, *_: Any, **__: Any):
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event

    def synchronize(self) -> None:
        self.gpu.sync("synchronize")


class Event:
    """A moment."""

    gpu: Gpu

    def __init__(self, *_: Any, **__: Any):
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.gpu.sync("synchronize")

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.time - self.time)


def _no_graph(*_: Any, **__: Any) -> Any:
    raise RuntimeError("A pretended GPU captures no graph.")


def _answer(value: Any) -> Callable[..., Any]:
    """A function that returns `value`, whatever it is asked."""

    def answer(*_: Any, **__: Any) -> Any:
        return value

    return answer


def _groups(gpu: Gpu, grouped: Callable[..., Any]) -> Callable[..., Any]:
    """torch's grouping of an optimiser's tensors, by where they say they are.

    torch requires that all tensors of one index share a device; only counts of steps may stay on the host.
    """

    def by_device(lists: list[list[Any]], with_indices: bool = False) -> Any:
        for row in zip(*(tensors for tensors in lists if tensors), strict=False):
            found = [tensor for tensor in row if isinstance(tensor, Tensor)]
            elsewhere = [t for t in found if where(t) != "either" and where(t) != where(found[0])]
            if any(tensor.dim() > 0 for tensor in elsewhere):
                gpu.refuse("an optimiser's tensors of one parameter")
        groups = {}
        for (_, dtype), found in grouped(lists, with_indices).items():
            # One model is on one device, so torch's groups by type need not be split further.
            groups[found[0][0][0].device, dtype] = found
        return groups

    return by_device


def _changes(gpu: Gpu) -> list[tuple[Any, str, Any]]:
    """What torch is told while the GPU is there: (module or class, name, value)."""
    cuda, graph = torch.cuda, torch.autograd.graph
    run_backward, is_enabled = graph._engine_run_backward, torch.is_autocast_enabled
    stream_class, event_class = type("Stream", (Stream,), {"gpu": gpu}), type("Event", (Event,), {"gpu": gpu})
    stream = stream_class()
    properties = SimpleNamespace(
        name="pretended", total_memory=MEMORY, multi_processor_count=1, major=9, minor=0
    )

    def backward(*args: Any, **kwargs: Any) -> Any:
        # torch hides `OnCalls` while it handles `loss.backward()`: hooks and backward functions of Python
        # are watched again from here.
        with gpu.set_flag("in_engine", True), OnCalls(gpu):
            return run_backward(*args, **kwargs)

    def is_autocast_enabled(device_type: str = "cpu") -> bool:
        return is_enabled("cpu")

    def synchronize(device: Any = None) -> None:
        gpu.sync("synchronize")

    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "_lazy_init": None,
        "empty_cache": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "mem_get_info": (MEMORY, MEMORY),
        "current_stream": stream,
        "default_stream": stream,
        "is_current_stream_capturing": False,
    }
    changes = [(cuda, name, _answer(value)) for name, value in answers.items()]
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        # They ask the real driver whether a graph is being captured.
        if hasattr(torch.optim.Optimizer, name):
            changes.append((torch.optim.Optimizer, name, _answer(None)))
    for module in (clip_grad, optimizer):
        name = "_group_tensors_by_device_and_dtype"
        changes.append((module, name, _groups(gpu, getattr(module, name))))
    return [
        *changes,
        (cuda, "synchronize", synchronize),
        (cuda, "Stream", stream_class),
        (cuda, "Event", event_class),
        (cuda, "stream", _answer(nullcontext())),
        (cuda, "device", _answer(nullcontext())),
        (cuda, "CUDAGraph", _no_graph),
        (cuda, "graph", _no_graph),
        # torch refuses a stream that is none before a mode may look at the call.
        (Tensor, "record_stream", _answer(None)),
        (torch, "Generator", Generator),
        (torch, "autocast", Autocast),
        (torch.amp, "autocast", Autocast),
        (torch, "is_autocast_enabled", is_autocast_enabled),
        (torch.autograd, "_engine_run_backward", backward),
        (graph, "_engine_run_backward", backward),
    ]


@contextmanager
def pretended_gpu(root: str | Path) -> Iterator[Gpu]:
    """There is a `cuda` while the block runs.

    Args:
        root: the folder of the project; what is recorded names its files by their path from here.
    """
    gpu = Gpu(root)
    changes = _changes(gpu)
    before = [getattr(owner, name) for owner, name, _ in changes]
    # Otherwise `torch.tensor(...)` would be moved where a mode says, before this one sees it.
    lifts = torch._C._only_lift_cpu_tensors()
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        torch._C._set_only_lift_cpu_tensors(True)
        with OnCalls(gpu), OnTensors(gpu):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)
