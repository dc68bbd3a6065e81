"""Steps as graphs: each batch counts once, a new key records anew, the rest runs eagerly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from recorded_steps import TapeRecording
from torch import Tensor

from engine.compute.graphs import WARM_UP, CudaRecording, GraphedStep, graphed_step, steady
from engine.optim import set_learning_rate

CPU = torch.device("cpu")


class Line:
    """A weight that learns to be 3 times its input, with noise from a generator."""

    def __init__(self) -> None:
        self.weight = torch.zeros(4, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.weight], 0.1, 0.9, fused=True)
        self.draws = torch.Generator()

    def step(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        noise = torch.rand(4, generator=self.draws)
        loss = ((self.weight * x - 3 * x + 0.1 * noise) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def losses(line: Line, run: Callable[[int, Tensor], Tensor], steps: int) -> Tensor:
    """Of steps with other batches, rates and draws."""
    found = []
    for number in range(steps):
        line.draws.manual_seed(number)
        set_learning_rate(line.optimizer, 0.1 / (1 + number))
        found.append(run(number, torch.arange(4.0) + number))
    return torch.stack(found)


def test_a_graph_learns_what_eager_steps_learn() -> None:
    eager, graphed = Line(), Line()
    steady(graphed.optimizer, CPU)
    recording = TapeRecording([graphed.draws])
    graph = GraphedStep(recording)
    ours = losses(graphed, lambda _, x: graph.run(None, graphed.step, [x]), 9)
    # A rate as a tensor is a float32, as it is in a kernel.
    torch.testing.assert_close(ours, losses(eager, lambda _, x: eager.step(x), 9), rtol=1e-6, atol=0)
    assert (recording.records, recording.replays) == (1, 9 - WARM_UP)
    assert len(set(ours.tolist())) == 9, "each step has losses of its own"


def test_another_key_or_shape_is_recorded_anew() -> None:
    line = Line()
    steady(line.optimizer, CPU)
    recording = TapeRecording([line.draws])
    graph = GraphedStep(recording)

    def of_epoch(number: int, x: Tensor) -> Tensor:
        factor = 1.0 + number // 6  # a number that Python computes, the same in all steps of an epoch
        return graph.run(number // 6, lambda batch: line.step(factor * batch), [x])

    eager = Line()
    wanted = losses(eager, lambda number, x: eager.step((1.0 + number // 6) * x), 12)
    torch.testing.assert_close(losses(line, of_epoch, 12), wanted, rtol=1e-6, atol=0)
    assert recording.records == 2
    graph.run(1, line.step, [torch.ones(1, 4)])
    assert graph.losses is None, "other shapes have to warm up again"
    assert not recording.tape.entries, "the old graph holds memory that the steps that warm up may need"


def test_a_number_of_python_that_changes_is_noticed() -> None:
    """The stand-in is as strict as a graph: this is what the tests of search and retraining rely on."""
    line, eager = Line(), Line()
    steady(line.optimizer, CPU)
    graph = GraphedStep(TapeRecording([line.draws]))
    wrong = losses(line, lambda n, x: graph.run(None, lambda batch: line.step((1 + n) * batch), [x]), 6)
    right = losses(eager, lambda n, x: eager.step((1 + n) * x), 6)
    assert not torch.allclose(wrong, right)


def test_what_waits_for_the_device_runs_eagerly_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    line, eager = Line(), Line()
    steady(line.optimizer, CPU)
    graph = GraphedStep(TapeRecording([line.draws]))

    def waits(x: Tensor) -> Tensor:
        return line.step(x) if float(x.sum()) else line.step(-x)

    ours = losses(line, lambda _, x: graph.run(None, waits, [x]), 6)
    torch.testing.assert_close(ours, losses(eager, lambda _, x: eager.step(x), 6), rtol=1e-6, atol=0)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(
        "steps are not launched as a CUDA graph: _local_scalar_dense"
    )


class FailingGraph:
    """torch's context of a recording that fails: its end fails, too, and its stream stays the current one."""

    def __init__(self, graph: object, stream: str, **_: str):
        self.stream = stream

    def __enter__(self) -> None:
        torch.cuda.set_stream(self.stream)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_recording_that_fails_ends_on_the_stream_of_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    current = ["default"]

    @contextmanager
    def on_stream(stream: str) -> Iterator[None]:
        before = current[0]
        current[0] = stream
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "of the recording")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", FailingGraph)
    graph = GraphedStep(CudaRecording(CPU))
    graph.key, graph.warm = (None, ((torch.Size([1]), torch.float32, (1,)),)), WARM_UP
    graph.buffers = [torch.zeros(1)]
    seen = []

    def step(x: Tensor) -> Tensor:
        seen.append(current[0])
        if current[0] == "of the recording":
            raise RuntimeError("the step waits for the device")
        return x

    assert graph.run(None, step, [torch.ones(1)]) == 1
    assert seen == ["of the recording", "default"]
    said = "steps are not launched as a CUDA graph: the step waits for the device\n"
    assert capsys.readouterr().out == said


def test_there_are_graphs_on_cuda_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert graphed_step("auto", CPU, None) is None and graphed_step("auto", CPU, "a reason") is None
    assert not capsys.readouterr().out, "nobody expects one on CPU"
    assert graphed_step("off", torch.device("cuda"), "a reason") is None
    assert graphed_step("auto", torch.device("cuda"), "steps differ") is None
    assert capsys.readouterr().out == "steps are not launched as a CUDA graph: steps differ\n"
