"""Run folders: nothing half-written, nothing overwritten unasked."""

import os
import stat
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_state, load_weights, save_state, save_weights
from engine.config import Config
from engine.errors import UserError
from engine.run import Run, append_line, environment, read_json, read_lines, selected_files, write_json
from engine.runs.writing import atomic


class Settings(Config):
    """Settings of a pretended run."""

    epochs: int = 1
    device: str = "cpu"


def start(path: Path, config: Config, *, resume: bool = False, overwrite: bool = False) -> Run:
    return Run.start(path, config, resume=resume, overwrite=overwrite)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_permissions_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "w", {"w": torch.zeros(1)})
        save_state(tmp_path / "s", {"step": 1})
        write_json(tmp_path / "j", {})
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "wsj"] == [mode] * 3


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = Path.replace

    def fsync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")

    def rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    save_state(tmp_path / "s", {"step": 1})
    assert done == ["file", "rename", "folder"]


def test_budgets_are_listed_by_their_limits(tmp_path: Path) -> None:
    names = ["300k", "1.5M", "2M", "12M", "12M-5ms", "12M-15ms", "1G", "a", "b"]
    (tmp_path / "selected").mkdir()
    for name in [*reversed(names), "front"]:
        (tmp_path / "selected" / f"{name}.json").write_text("{}")
    assert list(selected_files(tmp_path)) == names


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": ')
    assert read_lines(path) == [{"a": 1}]


@pytest.mark.parametrize("line", ["", "{", "[1]", "\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        read_lines(path)


def test_start_resume_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = start(path, Settings())
    assert (run.config, run.finished) == ({"epochs": 1, "device": "cpu"}, False)
    with pytest.raises(UserError, match=r"already holds an unfinished run; add --resume"):
        start(path, Settings())
    start(path, Settings(device="cuda"), resume=True)
    with pytest.raises(UserError, match=r"was started with epochs = 1, not 2"):
        start(path, Settings(epochs=2), resume=True)
    (path / "notes.txt").write_text("mine")
    for name in ("pairs.jsonl", "export/x.onnx"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("old")
    with pytest.raises(UserError, match="give one of them"):
        start(path, Settings(), resume=True, overwrite=True)
    start(path, Settings(epochs=2), overwrite=True)
    assert {p.name for p in path.iterdir()} == {"config.yaml", "env.json", "notes.txt"}
    (path / "weights.safetensors").touch()
    run.finish()
    with pytest.raises(UserError, match="a finished run"):
        start(path, Settings(epochs=2))


class Images(Config):
    """Settings of pretended images."""

    path: str = "photos"
    workers: int = 2


class OfImages(Settings):
    """Settings with a section."""

    data: Images = Images()


def test_another_machine_may_decode_with_other_workers_but_not_other_images(tmp_path: Path) -> None:
    start(tmp_path / "run", OfImages())
    start(tmp_path / "run", OfImages(data=Images(workers=8)), resume=True)
    with pytest.raises(UserError, match=r"was started with data\.path = photos, not others; resume"):
        start(tmp_path / "run", OfImages(data=Images(path="others")), resume=True)


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files that are not a run"):
        start(tmp_path, Settings(), overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_configuration_of_something_else_is_not_a_run(tmp_path: Path) -> None:
    for name in ("config.yaml", "thesis.tex"):
        (tmp_path / name).write_text("theirs")
    with pytest.raises(UserError, match="holds files that are not a run"):
        start(tmp_path, Settings(), overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "theirs"


@pytest.mark.parametrize("left", [".config.yaml.x1", "env.json", "config.yaml"])
def test_a_start_that_was_killed_can_be_repeated(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("epochs: 1\ndevice: cpu\n")
    assert start(tmp_path, Settings(), resume=True).config["epochs"] == 1


def test_overwrite_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    start(tmp_path / "real", Settings()).finish()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run = start(tmp_path / "link", Settings(epochs=5), overwrite=True)
    assert not run.finished
    assert Run(tmp_path / "real").config["epochs"] == 5


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); choose another with --out"):
        start(tmp_path / "file" / "run", Settings())


def test_open_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder; train one"):
        Run.open(tmp_path)
    start(tmp_path / "run", Settings())
    with pytest.raises(UserError, match=r"is not finished; continue it with python -m ofa\.train"):
        Run.open(tmp_path / "run")


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = start(tmp_path / "run", Settings())
    for step in (1, 2, 2, 3):
        run.log(step=step)
        if step == 1:
            points = run.points_logged()
    run.forget_after(points + 1)
    assert [p["step"] for p in read_lines(run.path / "metrics.jsonl")] == [1, 2]


def test_weights_and_state_survive_and_damage_is_named(tmp_path: Path) -> None:
    weight = torch.rand(3, 4).t()
    save_weights(tmp_path / "w", {"w": weight})
    save_state(tmp_path / "s", {"w": weight, "step": 3})
    assert torch.equal(load_weights(tmp_path / "w")["w"], weight)
    assert load_state(tmp_path / "s")["step"] == 3
    for name, load in (("w", load_weights), ("s", load_state)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(UserError, match="cannot be loaded"):
            load(path)


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_environment_records_versions() -> None:
    found = environment()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["command"]


def test_a_check_refuses_what_a_start_would_and_writes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert not run.check(Settings(), resume=False, overwrite=False)
    assert not run.path.exists()
    start(run.path, Settings())
    assert run.check(Settings(), resume=True, overwrite=False)
    assert not run.check(Settings(epochs=2), resume=False, overwrite=True)
    for settings, resume, overwrite, said in (
        (Settings(), False, False, "already holds an unfinished run"),
        (Settings(epochs=2), True, False, "was started with epochs = 1, not 2"),
        (Settings(), True, True, "give one of them"),
    ):
        with pytest.raises(UserError, match=said):
            run.check(settings, resume=resume, overwrite=overwrite)
    # A setting that is decided when the data is read cannot be compared before.
    assert run.check(Settings(epochs=2), resume=True, overwrite=False, undecided=frozenset({"epochs"}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="holds files that are not a run"):
        Run(tmp_path / "photos").check(Settings(), resume=False, overwrite=True)
