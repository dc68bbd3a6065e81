"""The list of run folders, and what --delete leaves alone."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from engine.command.cli import parse
from engine.run import write_json
from engine.runs.__main__ import Runs, format_bytes
from engine.runs.listing import find_runs


def make_run(path: Path, config: str, points: list[dict[str, object]], done: bool = False) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    write_json(path / "env.json", {})
    (path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    if done:
        (path / "weights.safetensors").touch()
        (path / "DONE").touch()
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    supernet = make_run(
        tmp_path / "photos" / "first",
        "{sandwich: {}, epochs: 4, arch: null, data: {name: imagefolder, path: /data/flowers}}",
        [
            {"step": 10, "epoch": 1, "arch": "largest", "val_accuracy": 0.9},
            {"step": 20, "epoch": 3, "arch": "smallest", "val_accuracy": 0.5},
            {"step": 20, "epoch": 3, "arch": "largest", "val_accuracy": 0.8},
            {"step": 21, "epoch": 3, "loss": 0.1},
        ],
        done=True,
    )
    (supernet / "pairs.jsonl").write_text("{}\n{}\n")
    write_json(supernet / "selected" / "1M.json", {})
    write_json(supernet / "selected" / "front.json", [])
    make_run(supernet / "tuned" / "1M", "{teacher_weight: 1}", [], done=True)
    second = make_run(
        tmp_path / "second",
        "{sandwich: {}, epochs: 40, arch: smallest, data: {name: digits}}",
        [{"step": 30, "epoch": 2, "loss": 1.0}],
    )
    (second / "notes.txt").write_text("mine")
    not_a_run = tmp_path / "mine"
    not_a_run.mkdir()
    (not_a_run / "config.yaml").write_text("{}")
    # Newest first must not depend on the order in which this fixture writes.
    for name in os.listdir(second):
        os.utime(second / name, (1, 1))
    return tmp_path


def test_a_run_says_what_it_is_and_how_far(runs: Path) -> None:
    first, second = find_runs(runs)
    assert first.name == "photos/first" and second.name == "second"
    assert (first.kind, first.state, first.data) == ("supernet", "finished", "imagefolder flowers")
    assert (first.best, first.last, first.holds) == (0.9, 0.8, "2 pairs, 1 selected, 1 tuned")
    assert (second.kind, second.state, second.data) == ("alone", "epoch 3 of 40", "digits")
    assert second.best is None and second.holds == ""
    assert second.bytes == sum(path.stat().st_size for path in (runs / "second").iterdir())


@pytest.mark.parametrize(
    ("config", "metrics"),
    [
        ("{", '{"step": 1, "epoch"'),
        ("{phases: [x], epochs: 4}", '{"step": 1, "epoch": 1}'),
        ("{epochs: 4}", '{"val_accuracy": 0.5}'),
        ("{epochs: 4}", '{"val_accuracy": "high", "epoch": "x"}'),
    ],
)
def test_a_damaged_run_hides_no_other(runs: Path, config: str, metrics: str) -> None:
    (runs / "second" / "config.yaml").write_text(config)
    (runs / "second" / "metrics.jsonl").write_text(metrics)
    assert {run.name: run.state for run in find_runs(runs)}["second"] == "unfinished"
    assert len(find_runs(runs)) == 2


def test_the_list_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Runs, ["--folder", str(runs), "--json"]).execute() == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found] == ["photos/first", "second"]
    assert datetime.fromisoformat(found[1]["changed"]).year == 1970


def test_delete_refuses_what_is_no_run(runs: Path) -> None:
    for name in ("mine", "photos", "../x", "second,mine"):
        with pytest.raises(ValueError, match="is no run folder"):
            parse(Runs, ["--folder", str(runs), "--delete", name, "--yes"]).execute()
    assert (runs / "second" / "config.yaml").exists()


def test_delete_asks(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = parse(Runs, ["--folder", str(runs), "--delete", "photos/first"])
    with pytest.raises(ValueError, match="--yes"):  # tests have no terminal
        command.execute()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert command.execute() == 1 and (runs / "photos" / "first").exists()

    def ctrl_d(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ctrl_d)
    assert command.execute() == 1 and (runs / "photos" / "first").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert command.execute() == 0 and not (runs / "photos" / "first").exists()


def test_a_run_that_holds_a_folder_of_its_name_is_deleted_itself(runs: Path) -> None:
    inner = make_run(runs / "second" / "second", "{}", [])
    assert parse(Runs, ["--folder", str(runs / "second"), "--delete", "second", "--yes"]).execute() == 0
    assert inner.exists() and not (runs / "second" / "config.yaml").exists()


def test_files_of_the_users_own_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Runs, ["--folder", str(runs), "--delete", "second", "--yes"]).execute() == 0
    assert os.listdir(runs / "second") == ["notes.txt"]
    assert "but not notes.txt in it" in capsys.readouterr().out


def test_bytes() -> None:
    assert [format_bytes(n) for n in (7, 1234, 56_700_000, 3 * 10**9)] == [
        "7 B",
        "1.23 kB",
        "56.7 MB",
        "3 GB",
    ]
