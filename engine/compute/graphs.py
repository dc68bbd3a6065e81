"""A training step as one CUDA graph: its kernels are recorded once and from then on launched together.

Eager, the host launches every kernel of a step by itself, some microseconds each. A search step of DARTS has
thousands of short ones, for which the device then waits. A graph launches them all at once.

A graph repeats kernels with the addresses and numbers that they had when it was recorded. So what changes
from step to step must be in tensors that stay where they are: the batch is copied to buffers, learning rates
are tensors, and generators are registered, which are then seeded for each step as in eager ones. What else
changes, such as the schedules of an epoch, is part of a key: another key means another recording.

Every step that warms up is a step of the training, so that a run with a graph learns what a run without one
does: the same kernels, in the same order, on the same numbers.

Not run on a GPU so far. The tests record on CPU, by a stand-in that repeats the operations of torch, and
check that the recorded function takes nothing from the host.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

# As torch advises: libraries choose kernels and optimisers make their state in the first steps.
WARM_UP = 3
Graphs = Literal["auto", "off"]
ABOUT_GRAPHS = (
    "launch each step as one CUDA graph: auto, on CUDA where all steps are alike; off. A graph keeps its "
    "intermediate maps, and those of a step beside it, in memory of its own"
)


class Recording(Protocol):
    """Records the kernels of a function and repeats them."""

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """Run the step as it will be recorded."""
        ...

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        """Record the step without running it; what it returns is filled by `replay`."""
        ...

    def replay(self) -> None:
        """Repeat the kernels of the last recording."""
        ...

    def forget(self) -> None:
        """Give up the last recording and its memory."""
        ...


class CudaRecording:
    """torch's CUDA graph.

    Args:
        device: the GPU.
        generators: what the step draws from.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()):
        self.generators = generators
        # A graph cannot be recorded on the default stream, and the warm-up must be on the same one.
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self, step: Callable[[], Tensor]) -> Tensor:
        """Run the step on the stream of the recording."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = step()
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        """Record the step."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Threads that load images may pin memory meanwhile, which the usual mode takes for an error.
        capture = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        # Where a recording fails, torch leaves its stream the current one, where later steps would not wait
        # for their batches. The outer block goes back to the stream of now.
        with torch.cuda.stream(torch.cuda.current_stream()), capture:
            losses = step()
        self.graph = graph
        return losses

    def replay(self) -> None:
        """Launch the graph."""
        assert self.graph is not None
        self.graph.replay()

    def forget(self) -> None:
        """Drop the graph: torch has its memory back when there is no other."""
        self.graph = None


class GraphedStep:
    """Steps that run as a graph once they are warm.

    Args:
        recording: records and repeats.
    """

    def __init__(self, recording: Recording):
        self.recording: Recording | None = recording
        self.key: Hashable = None
        self.warm = 0  # steps that ran since the key changed
        self.buffers: list[Tensor] = []
        self.losses: Tensor | None = None  # where the recorded step leaves its losses

    def run(self, key: Hashable, step: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        """One step on a batch.

        Args:
            key: whatever the step depends on beside the batch and tensors that stay where they are.
            step: from the tensors of the batch to losses; it must not wait for the device, nor read from the
                host anything that changes while the key stays.
            batch: the tensors; others of the same shapes from step to step.

        Returns:
            The losses, a tensor of its own for each step.
        """
        if self.recording is None:
            return step(*batch)
        shapes = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in batch)
        if (key, shapes) != self.key:
            self.key, self.warm, self.losses = (key, shapes), 0, None
            # Now, before the steps that warm up: else those would need their memory beside that of the graph.
            self.recording.forget()
            # Anew each time: the old buffers belong to the old graph.
            self.buffers = [torch.empty_like(tensor) for tensor in batch]
        for buffer, tensor in zip(self.buffers, batch, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if self.warm < WARM_UP:
            self.warm += 1
            return self.recording.warm_up(lambda: step(*self.buffers))
        if self.losses is None:
            try:
                self.losses = self.recording.record(lambda: step(*self.buffers))
            except RuntimeError as error:
                # Nothing was computed yet, so this step and all others run without a graph.
                self.recording = None
                print(f"steps are not launched as a CUDA graph: {_first_reason(error)}")
                return step(*batch)
        self.recording.replay()
        # The graph writes the next step's losses to the same place.
        return self.losses.clone()


def _first_reason(error: BaseException) -> str:
    """What ended a recording, in a line.

    CUDA then fails to end the recording, too. That second error arrives, and only says that there was one.
    """
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def steady(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimiser read what changes from tensors, so that its step can be recorded.

    Call it after a resumed run took up its state.
    """
    for group in optimizer.param_groups:
        # SGD's rate follows a schedule. That of Adam does not change in a search.
        if isinstance(optimizer, torch.optim.SGD):
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True
    # torch warns that steps run which are not recorded; the first ones do, on purpose.
    optimizer._warned_capturable_if_run_uncaptured = True


def graphed_step(
    graphs: Graphs, device: torch.device, why_not: str | None, generators: Sequence[torch.Generator] = ()
) -> GraphedStep | None:
    """Steps as graphs, where they are wanted and possible; None: steps run as they are.

    Args:
        graphs: what was asked for.
        device: where steps run. There are graphs on CUDA only.
        why_not: why steps of this run are not alike, printed where it keeps them from being a graph; None:
            they are.
        generators: what a step draws from.
    """
    if graphs == "off" or device.type != "cuda":
        return None
    if why_not is None:
        try:
            return GraphedStep(CudaRecording(device, generators))
        except RuntimeError as error:
            why_not = str(error).splitlines()[0]
    print(f"steps are not launched as a CUDA graph: {why_not}")
    return None
