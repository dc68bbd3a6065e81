"""The memory of a search is known before it starts: beside what is counted, and what a process takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.compute.peak_memory import DeviceMemory, PeakMemory, device_memory
from engine.data.digits import Digits
from engine.errors import UserError
from engine.seed import torch_generator
from oneshot.methods.darts import Darts
from oneshot.methods.method import Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.gdas import Gdas
from oneshot.networks.search import DartsNetwork
from oneshot.objectives.building import image_objective
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.objectives.memory import say_memory, search_memory
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space

CPU = torch.device("cpu")


def objective(method: Method, space: str, side: int, batch_size: int, channels: int = 4) -> ImageObjective:
    """On digits that say they were of `side` pixels."""
    data = Digits(val=0.5).load(CPU, 0)
    data.size = side
    network = search_network(find_space(space), method, channels, 3, 10, data.channels)
    return ImageObjective(network, data, batch_size, method.level == "single")


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    kept = torch.ones(1000)
    with PeakMemory() as memory:
        first = kept + 1  # 4,000 bytes
        view = first[:10]
        first.add_(1)
        del first
        assert memory.now == 4000, "the view keeps the storage"
        del view
        assert memory.now == 0
        second = torch.zeros(500)
    assert (memory.now, memory.peak) == (2000, 4000)
    del second
    assert memory.now == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [Darts(), PcDarts(warmup_epochs=0), Gdas()])
def test_a_small_step_tells_what_a_large_one_needs(method: Method) -> None:
    space = find_space("darts")
    large = objective(method, "darts", 32, 12)
    needed = search_memory(method, space, large)
    searcher = Searcher(method, space, large, 0, method.epochs)
    x = torch.randn(12, large.data.channels, 32, 32, generator=torch_generator("cpu", 0, "x"))
    batch = x.to(memory_format=torch.channels_last), torch.zeros(12, dtype=torch.long)
    searcher.step(0, batch, batch)
    with PeakMemory() as counted:
        for number in range(1, 5 if method.samples_operations else 2):
            searcher.step(number, batch, batch)
    weights = 2 * sum(w.nbytes for w in large.network.parameters())  # momentum, too
    # Other operations are drawn here.
    tolerance = 0.35 if method.samples_operations else 0.1
    assert needed.step.of(12) == pytest.approx(counted.peak + weights, rel=tolerance)


MEASURED = """
import pathlib, torch
from engine.compute.memory import keep_freed_memory
keep_freed_memory()
from tests.oneshot.test_memory import *
method, space = Darts(), find_space("darts")
large = objective(method, "darts", 32, 48, 8)
searcher = Searcher(method, space, large, 0, 50)
batch = torch.randn(48, 1, 32, 32).to(memory_format=torch.channels_last), torch.zeros(48, dtype=torch.long)
def peak():  # in KiB, since this program began; getrusage counts what the process was before, too
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
for step in range(2):
    searcher.step(step, batch, batch)
print(1024 * (peak() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much a process took")
def test_a_process_takes_what_was_estimated() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], cwd=root, capture_output=True, text=True, check=True
    )
    needed = search_memory(Darts(), find_space("darts"), objective(Darts(), "darts", 32, 48, 8))
    # The factors that the module and docs/search.md state.
    assert 0.8 < int(done.stdout) / needed.step.of(48) < 1.5


def test_what_cannot_fit_is_refused_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    method = Darts()
    needed = search_memory(method, find_space("darts"), objective(method, "darts", 224, 64))
    say_memory(needed, None, 4, 224, 1)
    say_memory(needed, DeviceMemory(needed.needed, needed.needed), 4, 224, 1)
    assert "warning" not in capsys.readouterr().out
    few = needed._replace(evaluated=1)
    half = few.step.of(32)
    say_memory(few, DeviceMemory(10 * half, half), 4, 224, 1)
    warning = capsys.readouterr().out
    assert "warning: " in warning and "--batch-size (now 64; 32 would fit)" in warning
    for flag in ("--channels (now 4)", "--data.size (now 224)", "--method.partial (now 1)"):
        assert flag in warning
    with pytest.raises(UserError, match=r"more than the .* GB that there are; lower --batch-size"):
        say_memory(few, DeviceMemory(half, half // 2), 4, 224, 1)
    say_memory(few, DeviceMemory(10 * half, half), None, 224, 1)
    assert "--channels" not in capsys.readouterr().out, "a chain has widths of its own"


def test_a_search_says_so_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--cells", "3", "--channels", "2", "--epochs", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("oneshot.search.device_memory", lambda device: DeviceMemory(10**5, 10**5))
    with pytest.raises(UserError, match="This search needs about"):
        parse(Search, tiny).execute()
    assert not (tmp_path / "run").exists()
    assert "GB of memory, of which 0.0001 GB are free" in capsys.readouterr().out


def test_the_memory_of_this_machine() -> None:
    memory = device_memory(CPU)
    if memory is not None:
        assert 0 < memory.free <= memory.total


@pytest.mark.parametrize(("size", "stem"), [(32, "cifar"), (112, "imagenet")])
def test_the_side_of_the_images_chooses_the_stem(size: int, stem: str) -> None:
    data = Digits(val=0.5).load(CPU, 0)
    data.size = size
    network = image_objective(find_space("darts"), Darts(), data, 2, 3, 16, 0).network
    assert isinstance(network, DartsNetwork) and network.stem_name == stem
