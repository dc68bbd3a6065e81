"""Kernels, bytes and multiplications of one step on a GPU, counted without a GPU.

A step runs on the meta device, where tensors have sizes and no numbers, and every operation that torch would
send to the device is counted: forward, backward and optimiser. Beside each step stands the same step with one
module per operation, as reference codes have it (`benchmarks.plain_cells`, `benchmarks.supernet_step`).

What is one kernel: an operation of ATen that computes or copies something. Views and empty tensors are none.
Composite operations are counted as the operations that they consist of. A backward of a convolution is as
many kernels as it has results. A call for a list of tensors (`_foreach_`, `_fused_`) is as many kernels as
torch launches for it: see `launches`. What cuDNN or cuBLAS add by themselves, such as a change of layout, is
not seen, and an operation that torch computes in several kernels (a BatchNorm, a mean) counts once.

The roofline takes three figures of a device; the defaults are assumptions, near an A100's. An eager step
takes at least as long as the host needs to launch its kernels, and at least as long as the device needs to
compute them, each bound by its bytes or by its multiplications.

    python benchmarks/kernels.py --launch-us 6 --terabytes 1.5 --teraflops 60
"""

import argparse
import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.kernel_steps import Step, pairs
from engine.run import environment

# torch's MultiTensorApply.cuh: the most tensors and blocks of one launch, by the number of lists, and the
# numbers in a block. These are the limits where kernels take 4 KB of arguments; builds for CUDA 13 take 32 KB
# and seven times as many.
MOST_TENSORS = (110, 64, 48, 36, 30)
MOST_BLOCKS = 320
BLOCK = 65_536
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"}
FREE |= {"_unsafe_view", "_reshape_alias", "lift_fresh", "set_", "is_same_size", "prim_device"}


@dataclass
class Count:
    """What one step launches.

    Args:
        kernels: how many, by the name of the operation.
        bytes: read and written; a tensor that several kernels read counts each time.
        flops: two for a multiplication and an addition, of convolutions and matrix products.
        work: (bytes, flops) of each kernel.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    flops: int = 0
    work: list[tuple[float, float]] = field(default_factory=list)

    def add(self, name: str, launched: int, moved: int, flops: int) -> None:
        """Count an operation that is `launched` kernels together."""
        self.kernels[name] += launched
        self.bytes, self.flops = self.bytes + moved, self.flops + flops
        self.work += [(moved / launched, flops / launched)] * launched

    @property
    def total(self) -> int:
        """All kernels."""
        return self.kernels.total()

    def seconds(self, launch: float, bandwidth: float, speed: float) -> tuple[float, float]:
        """(what the host needs to launch the step, what the device needs to compute it).

        Args:
            launch: seconds to launch a kernel.
            bandwidth: bytes a second.
            speed: floating-point operations a second.
        """
        computing = sum(max(moved / bandwidth, flops / speed) for moved, flops in self.work)
        return self.total * launch, computing


class Counting(TorchDispatchMode):
    """Counts what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        # There is no fused optimiser on the meta device. It changes its tensors in place and returns nothing.
        out = None if name.startswith("_fused_") else func(*args, **kwargs)
        if func.is_view or name in FREE:
            return out
        launched = 1
        if name.startswith(("_foreach_", "_fused_")):
            launched = launches([arg for arg in args if isinstance(arg, list | tuple)])
        tensors = [tensor for tensor in leaves([args, kwargs, out]) if isinstance(tensor, Tensor)]
        moved = sum(size(tensor) for tensor in tensors)
        flops = 0
        if name == "convolution_backward":
            grad, _, weight = args[:3]
            launched = sum(args[-1])
            moved += size(grad) * (launched - 1)
            # The gradients of input and weight are each as many products as the convolution. The count of
            # torch itself leaves the groups out.
            flops = 2 * len(grad) * math.prod(grad.shape[2:]) * weight.numel() * sum(args[-1][:2])
        elif func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        if launched:
            self.count.add(name, launched, moved, flops)
        return out


def launches(lists: Sequence[Sequence[Any]]) -> int:
    """How many kernels a call for lists of tensors is, by torch's limits for one launch.

    torch computes the tensors one by one where they are of several types, or where the tensors at one place
    of the lists differ in strides.
    """
    lists = [tensors for tensors in lists if tensors and isinstance(tensors[0], Tensor)]
    kinds = {tensor.dtype for tensors in lists for tensor in tensors}
    alike = all(len({strides(tensor) for tensor in place}) == 1 for place in zip(*lists, strict=True))
    if len(kinds) > 1 or not alike:
        return len(lists[0])
    most = MOST_TENSORS[min(len(lists), len(MOST_TENSORS)) - 1]
    launched = tensors = blocks = 0
    for tensor in lists[0]:
        tensors += 1
        blocks += math.ceil(tensor.numel() / BLOCK)
        # A large tensor may fill several launches.
        while blocks >= MOST_BLOCKS:
            launched, tensors, blocks = launched + 1, 1, blocks - MOST_BLOCKS
        if tensors == most:
            launched, tensors, blocks = launched + 1, 0, 0
    return launched + (1 if blocks else 0)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of axes with more than one place, which are all that matters."""
    return tuple(step for side, step in zip(tensor.shape, tensor.stride(), strict=True) if side > 1)


def leaves(value: Any) -> Iterator[Any]:
    """What lists, tuples and dictionaries hold."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def size(tensor: Tensor) -> int:
    """The bytes of a tensor, of which an expanded one has less than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Draws(TorchFunctionMode):
    """Answers what the host asks the device for: which operations were drawn on each edge. Each in turn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist and args[0].is_meta:
            rows, columns = args[0].shape
            return [[column == row % 4 + 1 for column in range(columns)] for row in range(rows)]
        return func(*args, **(kwargs or {}))


class NoAutocast(torch.autocast):
    """There is no autocast on the meta device."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__("cpu", enabled=False)


class HostGenerator(torch.Generator):
    """There are no generators on the meta device, and nobody looks at what they would draw."""

    def __new__(cls, device: Any = "cpu") -> "HostGenerator":
        return super().__new__(cls)


@contextlib.contextmanager
def taken_for_cuda() -> Iterator[None]:
    """While it runs, torch treats tensors on the meta device as it treats those on CUDA, in float32."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    replaced: list[tuple[Any, str, Any]] = [
        (torch, "autocast", NoAutocast),
        (torch, "Generator", HostGenerator),
    ]
    for module in (_foreach_utils, optimizer):
        for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
            replaced.append((module, name, lambda: ["cuda", "meta"]))
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def count(make: Callable[[], Step]) -> Count:
    """What the second step launches; the first one also makes the optimiser's state."""
    with taken_for_cuda(), Draws():
        step = make()
        for _ in range(2):
            with Counting() as counting:
                step()
    return counting.count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=list(pairs()), default=list(pairs()))
    parser.add_argument("--launch-us", type=float, default=6.0, help="microseconds to launch a kernel")
    parser.add_argument("--terabytes", type=float, default=1.5, help="memory bandwidth, TB/s")
    parser.add_argument("--teraflops", type=float, default=60.0, help="reached in convolutions, TFLOPS")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain steps")
    parser.add_argument("--most", type=int, default=0, help="print so many of the most frequent operations")
    parser.add_argument("--json", help="file for the counts")
    args = parser.parse_args()
    print("step            batch   kernels    GB  GFLOP   launch ms  device ms   plain: kernels    GB  ratio")
    written = {}
    for name in args.steps:
        pair = pairs()[name]
        ours = count(lambda pair=pair: pair.ours(pair.images))
        launch, device = ours.seconds(args.launch_us / 1e6, args.terabytes * 1e12, args.teraflops * 1e12)
        line = f"{name:14} {pair.images:6} {ours.total:9,} {ours.bytes / 1e9:5.1f} {ours.flops / 1e9:6.0f} "
        line += f"{1e3 * launch:11.1f} {1e3 * device:10.1f}"
        written[name] = {"kernels": ours.total, "bytes": ours.bytes, "flops": ours.flops}
        if not args.no_plain:
            plain = count(lambda pair=pair: pair.plain(pair.images))
            line += f" {plain.total:16,} {plain.bytes / 1e9:5.1f} {plain.total / ours.total:6.1f}"
            written[name]["plain_kernels"] = plain.total
        print(line, flush=True)
        for operation, number in ours.kernels.most_common(args.most):
            print(f"    {number:7,} {operation}")
    print(f"assumed: {args.launch_us} us a launch, {args.terabytes} TB/s, {args.teraflops} TFLOPS")
    print(environment()["versions"])
    if args.json:
        with open(args.json, "w") as file:
            json.dump(written, file, indent=1)


if __name__ == "__main__":
    main()
