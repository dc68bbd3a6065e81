"""One writer for a run folder: who comes second is told who writes, and a dead process is in nobody's way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.config import Config
from engine.errors import UserError
from engine.run import Run
from engine.runs.aside import REPLACING
from engine.runs.lock import LOCK, write_lock

# Python 3.12 warns of a fork where threads run; the children here only write files, or train with one thread.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

HOLD = """
import os, signal, sys
from pathlib import Path
from engine.runs.lock import write_lock
with write_lock(Path(sys.argv[1]), shared=len(sys.argv) > 2):
    if len(sys.argv) > 2 and sys.argv[2] == "fork" and os.fork() > 0:
        # The child goes on, as a data worker may after its parent was killed.
        signal.pause()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        said = rf"written by process {process.pid} on .*python -c.*since 20"
        with pytest.raises(UserError, match=said), write_lock(tmp_path / "run"):
            pass
        # Who shares needs the others to share, too.
        with pytest.raises(UserError, match="is being written by"), write_lock(tmp_path / "run", shared=True):
            pass
    assert not (tmp_path / "run").exists(), "nothing was written, so no folder stays"


def test_who_shares_works_together(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="is being written by")
    with holder(tmp_path, "shared"), write_lock(tmp_path, shared=True), refused, write_lock(tmp_path):
        pass
    with write_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_run_keeps_the_outer_one_from_being_replaced(tmp_path: Path) -> None:
    for name in ("config.yaml", "env.json"):
        (tmp_path / name).write_text("")
    refused = pytest.raises(UserError, match="is being written by")
    with holder(tmp_path / "tuned" / "1M"), refused, write_lock(tmp_path):
        pass
    with holder(tmp_path / "tuned" / "1M"), write_lock(tmp_path / "tuned" / "2M"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cannot be written"), write_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_killed_writer_frees_the_folder_also_if_its_worker_lives_on(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with write_lock(tmp_path):
            pass


def test_a_signal_waits_until_the_lock_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.unlink

    def unlink(path: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # as a second Ctrl-C that comes while the command ends
        time.sleep(0.05)
        original(path)

    ended = threading.Event()
    # As torch's threads do, which may get the signal instead of the main one.
    other = threading.Thread(target=ended.wait)
    other.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt), write_lock(tmp_path):
            monkeypatch.setattr(Path, "unlink", unlink)
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()
        other.join()
    assert not (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with write_lock(tmp_path):
        pass
    assert capsys.readouterr().err.count("has no locks") == 1


def test_the_next_writer_removes_what_killed_ones_left(tmp_path: Path) -> None:
    for name in (
        ".state.pt.0a1b2c3d.part",
        ".tmph3PAoR",
        "export/.0a1b2c_d.part/x.onnx",
        ".notes.part",
        "selected/1M.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    # The bundle that was to be replaced when the process was killed, and one that was replaced.
    for name in (".1M.old.part", ".2M.old.part", "2M"):
        (tmp_path / "export" / name).mkdir()
        (tmp_path / "export" / name / "manifest.json").write_text(name)
    with write_lock(tmp_path):
        pass
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".notes.part", "selected/1M.json", "export/1M/manifest.json", "export/2M/manifest.json"}
    assert (tmp_path / "export" / "1M" / "manifest.json").read_text() == ".1M.old.part"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git takes a second."""
    monkeypatch.setattr("engine.run.environment", dict)


def test_a_folder_of_the_users_own_is_not_tidied_up(tmp_path: Path) -> None:
    for name in ("thesis.tex", ".draft.0a1b2c3d.part", ".thesis.old.part"):
        (tmp_path / name).write_text("years of work")
    before = snapshot(tmp_path)
    with write_lock(tmp_path):
        pass
    assert snapshot(tmp_path) == before


class Settings(Config):
    """Settings of a pretended run."""

    epochs: int = 1


def finished(path: Path) -> Run:
    run = Run.start(path, Settings(), resume=False, overwrite=False)
    (path / "weights.safetensors").write_text("old")
    run.finish()
    return run


def snapshot(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("event", range(1, 12))
def test_an_overwrite_that_is_killed_leaves_the_old_run_or_the_new_one(tmp_path: Path, event: int) -> None:
    run = finished(tmp_path / "run")
    before = snapshot(run.path)
    if (child := os.fork()) == 0:
        renames = 0

        def kill(name: str, _: object) -> None:
            nonlocal renames
            if name not in ("os.rename", "os.mkdir", "os.remove"):
                return
            renames += 1
            if renames == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        with write_lock(run.path):
            Run.start(run.path, Settings(epochs=2), resume=False, overwrite=True)
        os._exit(0)
    os.waitpid(child, 0)
    with write_lock(run.path):
        if Run(run.path).config["epochs"] == 1:
            assert snapshot(run.path).items() >= before.items() and Run(run.path).finished
        else:
            assert {path.name for path in run.path.iterdir()} == {"config.yaml", "env.json", LOCK}


def test_links_in_a_run_are_no_reason_to_fail(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (run.path / "export").symlink_to(tmp_path / "elsewhere")
    (run.path / "report").symlink_to(tmp_path / "nowhere")
    Run.start(run.path, Settings(epochs=2), resume=False, overwrite=True)
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "env.json"}
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"


def test_an_overwrite_that_cannot_finish_leaves_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path / "run")
    before, rename = snapshot(run.path), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "env.json" and target.parent.name == REPLACING:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        Run.start(run.path, Settings(epochs=2), resume=False, overwrite=True)
    assert snapshot(run.path) == before


def test_a_folder_without_weights_is_no_finished_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (run.path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="is not finished"):
        Run.open(run.path)


def test_more_epochs_may_be_asked_for_and_nothing_else(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    grows = frozenset({"epochs"})
    with pytest.raises(UserError, match="was started with epochs = 1, not 2"):
        Run.start(run.path, Settings(epochs=2), resume=True, overwrite=False)
    with pytest.raises(UserError, match="was started with epochs = 1, not 0"):
        Run.start(run.path, Settings(epochs=0), resume=True, overwrite=False, may_grow=grows)
    Run.start(run.path, Settings(epochs=2), resume=True, overwrite=False, may_grow=grows)
    assert run.config["epochs"] == 2 and not run.finished


def test_a_lost_environment_is_written_again(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", Settings(), resume=False, overwrite=False)
    (run.path / "env.json").unlink()
    Run.start(run.path, Settings(), resume=True, overwrite=False)
    assert (run.path / "env.json").exists()
