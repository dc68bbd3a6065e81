"""A stand-in for CUDA graphs on CPU: operations of torch are recorded, and repeated without running Python.

As a graph it repeats operations with the tensors and the numbers that they had. A number that Python computes
anew in each step stays what it was, so a step that depends on one gives other results than the eager one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS_FROM_HOST = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
WRITES_STATISTICS = {"native_batch_norm", "cudnn_batch_norm"}  # though their schemas do not say so


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)
    elif isinstance(value, Tensor):
        yield value


class Tape(TorchDispatchMode):
    """Every operation with its arguments and its results."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, Any]] = []
        # The memory that was written to, and what it held.
        self.before: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in READS_FROM_HOST:
            raise RuntimeError(f"{name} waits for the device while a step is recorded")
        for tensor in self._written(func, name, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.before.append((storage, storage.clone()))
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in([args, kwargs])}
        # What the step itself made need not be put back.
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors_in(out)} - given
        self.entries.append((func, args, kwargs, out))
        return out

    def _written(self, func: Any, name: str, args: Any, kwargs: Any) -> Iterator[Tensor]:
        """The arguments that an operation writes to."""
        if name in WRITES_STATISTICS:
            yield from tensors_in(list(args[3:5]))
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from tensors_in(value)
        for argument in func._schema.arguments:
            info = argument.alias_info
            if info is not None and info.is_write and argument.name in kwargs:
                yield from tensors_in(kwargs[argument.name])


class TapeRecording:
    """See `engine.compute.graphs.Recording`."""

    def __init__(self, generators: Sequence[torch.Generator] = ()):
        self.generators = generators
        self.tape = Tape()
        self.replays = self.records = 0

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        states = [generator.get_state() for generator in self.generators]
        self.tape, self.records = Tape(), self.records + 1
        with self.tape:
            losses = step()
        # A graph computes nothing while it is recorded: everything becomes again what it was.
        for storage, held in self.tape.before:
            storage.copy_(held)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        return losses

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.tape.entries:
            inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in([args, kwargs])}
            again = func(*args, **kwargs)
            for place, value in zip(tensors_in(out), tensors_in(again), strict=True):
                # Views and what is written in place are there already.
                if place.untyped_storage()._cdata not in inputs:
                    place.detach().copy_(value)

    def forget(self) -> None:
        self.tape = Tape()
