"""Checkpoints: every few minutes, the last and the best, after a kill, a lost terminal, and for longer."""

import os
import pty
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import FORKED, exit_codes
from torch import Tensor

from engine.checkpoint import load_state, load_weights
from engine.command.cli import parse
from engine.errors import UserError
from engine.run import read_lines
from engine.runs.lock import write_lock
from ofa.train import Train
from ofa.training.trainer import Trainer

Run = Callable[..., int]


def train_until_killed(step: int, words: list[str]) -> None:
    """What a process does that is killed after a step."""
    original = Trainer.update

    def update(self: Trainer, x: Tensor, y: Tensor) -> None:
        original(self, x, y)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.update = update  # type: ignore[method-assign]
    parse(Train, words).execute()


def kill_after(step: int, words: list[str]) -> None:
    """Run ofa.train with these words in a process that is killed after a step of the training."""
    process = FORKED.Process(target=train_until_killed, args=(step, words), daemon=True)
    process.start()
    assert exit_codes([process]) == [-signal.SIGKILL]


def same(a: Path, b: Path) -> bool:
    first, second = load_weights(a / "weights.safetensors"), load_weights(b / "weights.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 11, 25])  # in the first epoch before any checkpoint, at its end, later
def test_a_kill_costs_nothing_and_doubles_nothing(
    train: Run, trained_run: Path, tiny_yaml: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    same_flags = ["--space", str(tiny_yaml), "--epochs", "3", "--device", "cpu"]
    kill_after(step, [*same_flags, "--out", str(out), "--checkpoint-every", "0.000001s"])
    saved = load_state(out / "state.pt")["step"] if (out / "state.pt").exists() else 0
    # A checkpoint every microsecond is one at each look at the losses, every 10 steps.
    assert saved == {10: 0, 11: 10, 25: 22}[step]
    assert train(out, "--resume") == 0
    assert same(out, trained_run)
    assert read_lines(out / "metrics.jsonl") == read_lines(trained_run / "metrics.jsonl")


@pytest.mark.slow
def test_the_last_checkpoints_and_the_best_are_kept_and_can_be_gone_back_to(
    train: Run, trained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(out, "--keep", "2", "--evaluate-every", "1") == 0
    kept = out / "checkpoints"
    names = {"epoch-0002", "epoch-0003", "best"}
    assert {path.name for path in kept.iterdir()} == {f"{name}.pt" for name in names} | {
        f"{name}.safetensors" for name in names
    }
    scores: dict[int, list[float]] = {}
    for point in read_lines(out / "metrics.jsonl"):
        if "val_accuracy" in point:
            scores.setdefault(point["epoch"], []).append(point["val_accuracy"])
    best = max(scores, key=lambda epoch: (sum(scores[epoch]), epoch))
    assert load_state(kept / "best.pt")["epoch"] == best + 1
    # Back to the second epoch, as docs/run-folder.md says.
    (out / "state.pt").write_bytes((kept / "epoch-0002.pt").read_bytes())
    (out / "DONE").unlink()
    before = read_lines(out / "metrics.jsonl")
    assert train(out, "--keep", "2", "--evaluate-every", "1", "--resume") == 0
    assert same(out, trained_run) and read_lines(out / "metrics.jsonl") == before


@pytest.mark.slow
def test_a_finished_run_gets_more_epochs(
    train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out, "--sgd.warmup-epochs", "0", "--epochs", "1") == 0
    with pytest.raises(UserError, match=rf"seed = 0, not 1.*--init {out} starts from these weights"):
        train(out, "--sgd.warmup-epochs", "0", "--epochs", "2", "--seed", "1", "--resume")
    assert train(out, "--sgd.warmup-epochs", "0", "--epochs", "3", "--resume") == 0
    assert (
        "epochs = 3 instead of 1: learning rates are now those of the longer run" in capsys.readouterr().out
    )
    rates = [(point["step"], point["lr"]) for point in read_lines(out / "metrics.jsonl") if "loss" in point]
    assert [step for step, _ in rates] == [10, 11, 20, 22, 30, 33]
    assert rates[2][1] > rates[1][1], "from the second epoch on it is the schedule of three epochs"
    assert train(out, "--sgd.warmup-epochs", "0", "--epochs", "3", "--resume") == 0
    assert "finished already" in capsys.readouterr().out


def test_a_second_training_is_refused_and_changes_nothing(train: Run, tmp_path: Path) -> None:
    with write_lock(tmp_path / "run"), pytest.raises(UserError, match="is being written by process"):
        train(tmp_path / "run", "--overwrite")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_gone_ends_the_training_with_a_checkpoint(
    tiny_yaml: Path, tmp_path: Path, ignored: bool
) -> None:
    out = tmp_path / "run"
    epochs = "4" if ignored else "500"
    child, terminal = pty.fork()
    if child == 0:
        # As nohup does, or as a terminal does, also where these tests themselves run under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        words = ["-m", "ofa.train", "--space", str(tiny_yaml), "--epochs", epochs, "--out", str(out)]
        if ignored:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        os.execv(sys.executable, [sys.executable, *words])
    deadline = time.monotonic() + 60
    while not (out / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if ignored else 130)
    assert (out / "DONE").exists() == ignored
    assert load_state(out / "state.pt")["step"] > 0
    assert not list(out.glob(".*"))
