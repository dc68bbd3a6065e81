"""What tests share: one thread, a space small enough to train in seconds, and a run trained on it."""

import functools
import gc
import os
import sys
import tempfile
from pathlib import Path

# Before NumPy is imported, and for the processes that tests start: with a thread a core in each of them,
# small matrix products mostly wait for each other (tests of Gaussian processes take five times as long).
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# They test this checkout, whatever is installed. A fork server of Python 3.11 has no other way to learn it.
_paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

# A third of the time in which tests are collected would go to a search for garbage among modules.
gc.disable()

from collections.abc import Callable, Iterator

import pytest
import torch
from ranks import Pair

from engine.command.cli import parse
from ofa.space.space import Space
from ofa.train import Train

TINY = """
resolution: [8, 12]
stem: {width: [4, 8], stride: 1, act: hard_swish}
stages:
  - {width: [8], depth: [1, 2], kernel: [3], expand: [1], stride: 1, act: relu}
  - {width: [8, 16], depth: [1, 2], kernel: [3, 5], expand: [2, 3], stride: 2, se: true, act: hard_swish}
head: {width: [16, 32], expand: 2, act: swish}
"""


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """From here on garbage is collected, but what was imported is not looked through again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _exact_small_numbers() -> Iterator[None]:
    """Denormal numbers count again after a test that timed a file: onnxruntime rounds them to zero in the
    whole thread from then on, and another test would compute otherwise after it than alone."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def _for_all_tests() -> Iterator[pytest.MonkeyPatch]:
    """Patches that are undone after the last test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(autouse=True)
def _one_table_of_the_exporter(_for_all_tests: pytest.MonkeyPatch) -> None:
    """Every export by torch parses the sources of all its operators again, which takes longer than to export
    a small network. Nothing here changes the table that comes of it, so exports after the first share one."""
    # Not imported here: most tests export nothing.
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        once = functools.cache(exporter.ONNXRegistry.from_torchlib)
        _for_all_tests.setattr(exporter.ONNXRegistry, "from_torchlib", staticmethod(once))


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk(_for_all_tests: pytest.MonkeyPatch) -> None:
    """No test cuts the power. When files are brought to the disk is a matter of tests/engine/test_run.py."""
    _for_all_tests.setattr(os, "fsync", _check_handle)


def _check_handle(handle: int) -> None:
    """Fail as fsync does where the handle is closed or none at all."""
    os.fstat(handle)


@pytest.fixture(autouse=True, scope="session")
def _away_from_the_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixtures that are shared by all tests are made in an empty folder too."""
    folder = tmp_path_factory.mktemp("start")
    os.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_folder(_away_from_the_start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder of its own, so that none finds or leaves anything where pytest was
    started."""
    # Not mktemp of pytest, which reads the names of all folders so far: thousands, for each of the tests.
    monkeypatch.chdir(tempfile.mkdtemp(dir=_away_from_the_start))


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_yaml: Path) -> Space:
    from ofa.space.space import load_space

    return load_space(str(tiny_yaml))


@pytest.fixture(scope="session")
def train(tiny_yaml: Path) -> Callable[..., int]:
    """Run ofa.train on digits and the tiny space with extra flags; returns the exit status."""

    def run(out: Path, *flags: str) -> int:
        words = ["--space", str(tiny_yaml), "--epochs", "3", "--out", str(out), "--device", "cpu", *flags]
        return parse(Train, words).execute()

    return run


@pytest.fixture(scope="session")
def trained_run(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 epochs. Tests may add files to it but must not change what is there."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(out) == 0
    return out


@pytest.fixture(scope="session")
def nas_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data."""
    if "NAS_DATA" not in os.environ:
        pytest.skip("NAS_DATA does not name the folder of real data")
    return request.config.invocation_params.dir / os.environ["NAS_DATA"]


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    two = Pair()
    yield two
    for process in two.processes:
        process.terminate()
        process.join()
