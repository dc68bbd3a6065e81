"""Faults of the machine, each with a real process or a real error: one sentence, and nothing lost."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field

from engine.checkpoint import load_state, load_weights
from engine.command.cli import Command, main
from engine.errors import Diverged, UserError
from engine.run import Run, read_lines
from ofa.train import Train
from ofa.training.trainer import Trainer

Starts = Callable[..., int]
FLAGS = ("--epochs", "3", "--device", "cpu")
ODD = "ein Lauf ä 数"  # blanks, and letters that ASCII lacks


def words(tiny_yaml: Path, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "ofa.train", "--space", str(tiny_yaml), *FLAGS, "--out", str(out), *flags]


def same_weights(one: Path, two: Path) -> bool:
    a, b = (load_weights(run / "weights.safetensors") for run in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def ends_with_a_sentence(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run ofa.train in this process; it must exit 2. Returns the sentence."""
    with pytest.raises(SystemExit) as left:
        main(Train, argv)
    assert left.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


@pytest.mark.slow
def test_a_bare_environment_and_a_reader_that_goes(
    trained_run: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    """No HOME, no terminal, an ASCII locale, an odd path, and nobody behind the pipe: the same weights."""
    kept = ("PATH", "PYTHONPATH", "NAS_DATA", "OMP_NUM_THREADS")
    bare = {name: os.environ[name] for name in kept if name in os.environ}
    bare |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"}
    reading, writing = os.pipe()
    os.close(reading)
    out = tmp_path / ODD / "run"
    done = subprocess.run(
        words(tiny_yaml, out), env=bare, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert b"nobody reads the output any more" in done.stderr
    assert b"Traceback" not in done.stderr
    assert same_weights(out, trained_run)


@pytest.mark.slow
def test_a_full_disk_and_a_run_that_moves(
    trained_run: Path, train: Starts, tiny_yaml: Path, tmp_path: Path
) -> None:
    def no_large_files() -> None:  # to a write, a disk that is full and a file that may not grow are the same
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    out = tmp_path / "run"
    done = subprocess.run(
        words(tiny_yaml, out), preexec_fn=no_large_files, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    said = done.stderr.decode().strip().splitlines()[-1]
    assert done.returncode == 2
    assert said.startswith("error: Weights") and "free some space" in said
    assert not [path for path in out.iterdir() if "weights" in path.name], "no half file is left"
    # As after a move to a larger disk.
    moved = tmp_path / ODD
    out.rename(moved)
    assert train(moved, "--resume") == 0
    assert same_weights(moved, trained_run)


@pytest.mark.slow
def test_a_data_worker_that_is_killed(train: Starts, tiny_yaml: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for i in range(120):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    flags = ["--data", "imagefolder", "--data.path", str(tmp_path / "photos"), "--data.size", "12"]
    flags += ["--data.workers", "1", "--batch-size", "4", "--evaluate-every", "99", "--evaluate-random", "0"]
    flags += ["--epochs", "400"]
    out = tmp_path / "run"
    process = subprocess.Popen(
        words(tiny_yaml, out, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        workers = children.read_text().split() if (out / "state.pt").exists() else []
        if workers:
            os.kill(int(workers[0]), signal.SIGKILL)
            break
        time.sleep(0.05)
    assert process.stderr is not None
    said = process.stderr.read().decode().strip().splitlines()[-1]
    process.stderr.close()
    assert process.wait() == 2
    assert said.startswith("error: A process that decodes images died") and "--resume" in said
    assert load_state(out / "state.pt")["epoch"] >= 1


def test_memory_that_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    class Hungry(Command):
        """Ask for a petabyte."""

        batch_size: int = Field(64, description="images a step")
        host: bool = Field(False, description="by NumPy")

        def execute(self) -> int:
            return len(np.empty(10**15)) if self.host else len(torch.empty(10**15))

    for flags in ([], ["--host"]):
        with pytest.raises(SystemExit) as left:
            main(Hungry, flags)
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert "Memory ran out with batches of 64 images; lower --batch-size, such as to 32" in said


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, tiny_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    said = ends_with_a_sentence(capsys, words(tiny_yaml, tmp_path / "run")[3:])
    assert "cannot be written (Permission denied); choose another with --out" in said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux has /proc, where nobody can make files")
def test_a_place_that_takes_no_files(tiny_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ends_with_a_sentence(capsys, words(tiny_yaml, Path("/proc/run"))[3:])
    assert "'/proc/run' cannot be written" in said


@pytest.mark.slow
def test_a_file_that_cannot_be_replaced_and_a_clock_that_runs_backwards(
    train: Starts,
    trained_run: Path,
    tiny_yaml: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """state.pt becomes a folder in the second epoch; once it is gone the run goes on from the start."""
    out, original = tmp_path / "run", Trainer.update
    began, calls = time.time(), [0]

    def backwards() -> float:
        calls[0] += 1
        return began - 3600 * calls[0]

    monkeypatch.setattr(time, "time", backwards)

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        if self.step == 13:
            (out / "state.pt").unlink()
            (out / "state.pt" / "x").mkdir(parents=True)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        said = ends_with_a_sentence(capsys, words(tiny_yaml, out)[3:])
    assert "state.pt" in said and "directory" in said
    (out / "state.pt" / "x").rmdir()
    (out / "state.pt").rmdir()
    assert train(out, "--resume") == 0
    assert same_weights(out, trained_run)


@pytest.mark.slow
def test_a_divergence_rolls_back_to_lower_rates(
    train: Starts, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "run", Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x * torch.nan if self.step == 13 else x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Diverged, match="not finite at step 13"):
            train(out, "--on-divergence", "rollback")
    points = read_lines(out / "metrics.jsonl")
    assert [point["rate_scale"] for point in points if "rollback" in point] == [
        1 / 2,
        1 / 4,
        1 / 8,
        1 / 16,
        1 / 32,
    ]
    assert all(point["step"] == 11 for point in points if "rollback" in point)
    # A resumed run keeps the lower rate.
    assert train(out, "--on-divergence", "rollback", "--resume") == 0
    assert Run(out).finished
    rates, usual = (
        [point["lr"] for point in read_lines(run / "metrics.jsonl") if point["step"] == 30 and "lr" in point]
        for run in (out, trained_run)
    )
    assert rates == [pytest.approx(usual[0] / 32)]


@pytest.mark.slow
def test_a_divergence_before_the_first_checkpoint_ends_the_run(
    train: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self, x, y: original(self, x * torch.nan, y))
    with pytest.raises(UserError, match="not finite at step 0"):
        train(tmp_path / "run", "--on-divergence", "rollback")
