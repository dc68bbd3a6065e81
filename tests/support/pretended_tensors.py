"""Tensors of a pretended GPU: where each of them is said to be, and what an operation on them would do there.

All numbers are on the CPU. What a tensor says of its device is a mark on its storage, so views and what is
written in place agree with it. Two modes of torch watch every call. `OnTensors` sees each operation that
reaches a kernel, also those of autograd. `OnCalls` sees what Python calls, which is where a device is asked
for or named. `pretended_gpu` puts both in force; tests import that module, not this one.
"""

from typing import Any

import torch
from pretended_record import Gpu
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# Operations whose result has a size, or is a number, that only the data tell: the host waits for them.
WAITING = {
    "_local_scalar_dense", "_unique2", "allclose", "bincount", "equal", "histc", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip
# Kernels that refuse even a single number of the host; others take one as they take a Python number.
STRICT = {
    "_native_batch_norm_legit", "addmm", "baddbmm", "bmm", "cat", "convolution", "convolution_backward",
    "embedding", "gather", "index_select", "mm", "native_batch_norm", "native_batch_norm_backward",
    "nll_loss_forward", "scatter", "stack",
}  # fmt: skip
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}


def where(tensor: Tensor) -> str:
    """`cuda`, `cpu`, or `either` for what autograd made of options alone."""
    return getattr(tensor.untyped_storage(), "pretended", "cpu")


def on_gpu(tensor: Tensor) -> bool:
    return where(tensor) == "cuda"


def put(tensor: Tensor, device: str) -> Tensor:
    """Say that a tensor, and whatever shares its memory, is on `device`."""
    tensor.untyped_storage().pretended = device
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "pinned", False)


def pin(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned = True
    return tensor


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that lists, tuples and dictionaries hold."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    found: list[Tensor] = []
    for part in value:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple | dict):
            found += tensors_in(part)
    return found


def copy_waits(source: Tensor, to_gpu: bool, non_blocking: bool) -> bool:
    """Whether the host waits for a copy: only pinned memory is copied to a GPU behind its back.

    Towards the host torch allocates pinned memory itself.
    """
    return not (non_blocking and (is_pinned(source) or not to_gpu))


def laid_out_alike(tensors: list[Tensor]) -> bool:
    """Whether tensors of one shape have the same strides, as CUDA's fused optimisers ask.

    Counts of steps, which have no axes, are none of these tensors.
    """
    first, *others = [tensor for tensor in tensors if tensor.dim() > 0] or tensors
    for other in others:
        sides = zip(first.shape, first.stride(), other.stride(), strict=False)
        # An axis with one place has any stride.
        if other.dim() > 0 and any(side != 1 and a != b for side, a, b in sides):
            return False
    return True


class OnTensors(TorchDispatchMode):
    """Sees every operation that reaches a kernel."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What is asked below of tensors is not the project's question: `OnCalls` shall not answer it.
        with torch._C.DisableTorchFunction():
            return self._run(func, args, dict(kwargs or {}))

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func._schema.name.removeprefix("aten::")
        asked, pinned = kwargs.get("device"), kwargs.get("pin_memory")
        tensors = tensors_in(args) + (tensors_in(kwargs) if kwargs else [])
        if is_on_meta(asked, tensors):
            return func(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = CPU
        if pinned:
            kwargs["pin_memory"] = False
        if name == "_to_copy":
            target = self._converted(tensors[0], asked, bool(kwargs.get("non_blocking")))
        elif name == "copy_":
            target = self._overwritten(*args)
        else:
            target = self._target(asked, tensors)
            # Whatever has a tensor of the device is of the device, or refused.
            if any(on_gpu(tensor) for tensor in tensors):
                self._check(name, args, tensors)
                if name in WAITING and kwargs.get("output_size") is None:
                    self.gpu.sync(name)
        if self.gpu.recording and (target == "cuda" or any(on_gpu(tensor) for tensor in tensors)):
            self.gpu.ops[name] += 1
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            # A view, or what was written in place, has a mark already.
            if not hasattr(storage, "pretended"):
                storage.pretended, storage.pinned = target, bool(pinned)
        return out

    def _target(self, asked: Any, tensors: list[Tensor]) -> str:
        """Where the result of an operation is."""
        if asked is not None and torch.device(asked).type == "cuda":
            return "cuda"
        if asked is not None and self.gpu.in_engine:
            return "either"
        if asked is not None:
            return "cuda" if self.gpu.follows_tensors else "cpu"
        places = {where(tensor) for tensor in tensors}
        if "cuda" in places:
            return "cuda"
        if places == {"either"} or (not places and self.gpu.in_engine):
            return "either"
        return "cpu"

    def _converted(self, source: Tensor, asked: Any, non_blocking: bool) -> str:
        """Another type, layout or device of the same numbers."""
        guessed = self.gpu.in_engine or self.gpu.follows_tensors
        # torch names the device of another tensor, which is `cpu` for all of them here.
        if asked is None or (torch.device(asked).type == "cpu" and guessed):
            return where(source)
        target = torch.device(asked).type
        if where(source) not in (target, "either"):
            self._note_copy(source, target == "cuda", non_blocking)
        return target

    def _overwritten(self, target: Tensor, source: Any, non_blocking: bool = False) -> str:
        if isinstance(source, Tensor) and {where(target), where(source)} == {"cpu", "cuda"}:
            self._note_copy(source, on_gpu(target), non_blocking)
        return where(target)

    def _note_copy(self, source: Tensor, to_gpu: bool, non_blocking: bool) -> None:
        direction = "host to device" if to_gpu else "device to host"
        self.gpu.copied(direction, copy_waits(source, to_gpu, non_blocking))

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        """Refuse what a kernel of a GPU would refuse."""
        if name in INDEXING:
            self._check_index(name, *args)
        elif name.startswith("_foreach") or name.startswith("_fused"):
            lists = [arg for arg in args if isinstance(arg, list | tuple) and tensors_in(arg)]
            for row in zip(*lists, strict=False):
                self._check_together(name, tensors_in(row), strict=name.startswith("_fused"))
                if name.startswith("_fused") and not laid_out_alike(tensors_in(row)):
                    self.gpu.refuse(f"{name}: a weight, its gradient and its moments differ in strides")
        elif name not in ("set_", "_has_compatible_shallow_copy_type"):
            writes_to_host = name.endswith("_") and bool(tensors) and where(tensors[0]) == "cpu"
            self._check_together(name, tensors, name in STRICT or writes_to_host)

    def _check_together(self, name: str, tensors: list[Tensor], strict: bool) -> None:
        here = [tensor for tensor in tensors if where(tensor) == "cpu" and (strict or tensor.dim() > 0)]
        if here and any(map(on_gpu, tensors)):
            said = ", ".join(f"{tuple(tensor.shape)} on {where(tensor)}" for tensor in tensors)
            self.gpu.refuse(f"{name} of {said}")

    def _check_index(self, name: str, indexed: Tensor, indices: Any, values: Any = None, *_: Any) -> None:
        found = tensors_in(indices)
        if where(indexed) == "cpu" and any(map(on_gpu, found)):
            self.gpu.refuse(f"{name}: the tensor is on cpu, the index on cuda")
        single = isinstance(values, Tensor) and values.numel() == 1
        if isinstance(values, Tensor):
            # A single number may come from the host.
            self._check_together(name, [indexed, values], strict=not single)
        if not on_gpu(indexed):
            return
        if any(where(index) == "cpu" for index in found):
            self.gpu.sync(f"{name} by an index on the host")
        by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in found)
        # Writing one number where a mask is true is done without counting the places.
        if by_mask and not (single and where(values) == "cpu"):
            self.gpu.sync(f"{name} by a mask")


class OnCalls(TorchFunctionMode):
    """Sees what Python calls of torch."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and not first.is_meta:
            handled, answer = self._asked(func, first, args, kwargs)
            if handled:
                return answer
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and is_cuda(kwargs.get("device")):
            return self._made_of_numbers(func, args, kwargs)
        given = tensors_in((args, kwargs))
        if func is torch.tensor and not isinstance(args[0], Tensor) and any(map(on_gpu, real(given))):
            self.gpu.sync("each number of a list is read")
        gpu = self.gpu
        before = gpu.in_engine, gpu.follows_tensors, gpu.recording
        # What a hook or a backward written in Python makes is as explicit as it is elsewhere.
        gpu.in_engine = False
        gpu.follows_tensors = kwargs.get("device") is None and any(map(on_gpu, real(given)))
        # With a number of classes, one_hot looks at the values of a tensor on the host only.
        if func is torch.nn.functional.one_hot and (len(args) > 1 or "num_classes" in kwargs):
            gpu.recording = False
        try:
            out = func(*args, **kwargs)
        finally:
            gpu.in_engine, gpu.follows_tensors, gpu.recording = before
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch._C.Generator):
                self._check_generator(func, value, out)
        return out

    def _asked(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """(True, answer) for calls whose answer depends on where `x` is said to be."""
        there = on_gpu(x)
        if func == Tensor.device.__get__:
            return True, CUDA if there else CPU
        if func == Tensor.is_cuda.__get__:
            return True, there
        if func == Tensor.is_cpu.__get__:
            return True, not there
        if func is Tensor.get_device:
            return True, 0 if there else -1
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return True, self._moved(func, x, *args[1:], **kwargs)
        if func is Tensor.pin_memory:
            return True, pin(put(x.clone(), "cpu"))
        if func is Tensor.is_pinned:
            return True, is_pinned(x)
        if func is Tensor.record_stream:
            return True, None
        if not there:
            return False, None
        if func in (Tensor.numpy, Tensor.__array__):
            self.gpu.refuse("numpy() of a tensor on cuda")
        if func is Tensor.new_tensor and not is_cpu(kwargs.get("device")):
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
            return True, self._made_of_numbers(torch.tensor, args[1:], {"dtype": x.dtype} | kwargs)
        if func in (Tensor.tolist, Tensor.__repr__, Tensor.__format__):
            self.gpu.sync("print" if func is not Tensor.tolist else "tolist")
            # One wait, however many numbers are then read.
            with self.gpu.set_flag("recording", False):
                return True, func(*args, **kwargs)
        if func is Tensor.__deepcopy__:
            return True, put(func(*args, **kwargs), "cuda")
        return False, None

    def _moved(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x.to(...)`, `x.cpu()`, `x.cuda()`."""
        device, dtype, non_blocking, layout = None, None, bool(kwargs.get("non_blocking")), None
        if func is Tensor.to and isinstance(args[0] if args else kwargs.get("other"), Tensor):
            other = args[0] if args else kwargs["other"]
            device, dtype = CUDA if on_gpu(other) else CPU, other.dtype
        elif func is Tensor.to:
            plain = {name: value for name, value in kwargs.items() if name not in ("copy", "memory_format")}
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **plain)
        else:
            device = CPU if func is Tensor.cpu else CUDA
        layout = kwargs.get("memory_format") or layout or torch.preserve_format
        target = device.type if device is not None else where(x)
        if target == where(x):
            return x.to(dtype=dtype or x.dtype, memory_format=layout, copy=bool(kwargs.get("copy")))
        direction = "host to device" if target == "cuda" else "device to host"
        self.gpu.copied(direction, copy_waits(x, target == "cuda", non_blocking))
        with self.gpu.set_flag("recording", False):
            return put(x.to(dtype=dtype or x.dtype, memory_format=layout, copy=True), target)

    def _made_of_numbers(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """`torch.tensor(..., device="cuda")`: what Python holds is copied from memory that is not pinned."""
        self.gpu.sync("host to device, of Python's numbers")
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        with self.gpu.set_flag("recording", False):
            numbers = args[0].detach() if isinstance(args[0], Tensor) else args[0]
            return put(torch.asarray(numbers, *args[1:], **kwargs).clone(), "cuda")

    def _check_generator(self, func: Any, generator: torch.Generator, out: Any) -> None:
        """A generator draws on its own device only."""
        place = getattr(generator, "pretended", "cpu")
        for tensor in real(tensors_in(out)):
            if where(tensor) != place:
                name = getattr(func, "__name__", str(func))
                self.gpu.refuse(f"{name}: the generator is on {place}, the tensor not")


def is_on_meta(asked: Any, tensors: list[Tensor]) -> bool:
    """Whether an operation has no numbers: it is the same on every device."""
    named = asked is not None and torch.device(asked).type == "meta"
    return named or any(tensor.is_meta for tensor in tensors)


def real(tensors: list[Tensor]) -> list[Tensor]:
    """Those that have numbers."""
    return [tensor for tensor in tensors if not tensor.is_meta]


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def is_cpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"
