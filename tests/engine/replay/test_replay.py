"""A run that is run again: the same bit for bit, or told where it differs first."""

import shutil
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_weights, save_weights
from engine.command.cli import parse
from engine.errors import UserError
from engine.replay.__main__ import Replay
from engine.replay.differences import (
    compare_runs,
    environment_differences,
    lines_difference,
    weights_difference,
)
from engine.run import read_lines, write_lines


@pytest.mark.slow
def test_a_training_is_repeated_bit_for_bit(
    trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    # The thread count is this process's own there, so the flag is not in config.yaml.
    assert parse(Replay, [str(trained_run), "--out", str(again)]).execute() == 0
    said = capfd.readouterr().out
    assert "the same: config.yaml, model.json, metrics.jsonl, weights.safetensors\n" in said
    assert f"'{again}' is the same as '{trained_run}'" in said


@pytest.fixture
def two(trained_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and a copy of it."""
    shutil.copytree(trained_run, tmp_path / "copy")
    return trained_run, tmp_path / "copy"


def test_nothing_differs_in_a_copy_whatever_later_stages_add(two: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = two
    shutil.copytree(old, tmp_path / "old")
    (tmp_path / "old" / "pairs.jsonl").write_text("{}\n")
    found = compare_runs(tmp_path / "old", new)
    assert list(found) == ["config.yaml", "model.json", "metrics.jsonl", "weights.safetensors"]
    assert set(found.values()) == {""}


def test_the_first_difference_of_each_file_is_told(two: tuple[Path, Path]) -> None:
    old, new = two
    weights = load_weights(new / "weights.safetensors")
    name = sorted(weights)[3]
    # The smallest step that float32 can make: nothing that is printed would show it.
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_weights(new / "weights.safetensors", weights)
    points = read_lines(new / "metrics.jsonl")
    points[1]["lr"] = 0.125
    write_lines(new / "metrics.jsonl", points)
    (new / "model.json").write_text((new / "model.json").read_text().replace('"space"', '"spice"', 1))
    (new / "confusion").mkdir()
    (new / "confusion" / "val.csv").write_text("1\n")
    found = compare_runs(old, new)
    assert list(found)[-1] == "confusion/val.csv"
    assert found["confusion/val.csv"] == "is missing in the first run"
    assert found["config.yaml"] == ""
    line = (old / "model.json").read_text().split('"space"')[0].count("\n") + 1
    assert found["model.json"].endswith(f", in line {line}")
    assert found["metrics.jsonl"].startswith(f"line 2 (step {points[1]['step']}): lr is ")
    assert found["metrics.jsonl"].endswith(", now 0.125")
    one_of = f"1 of {len(weights)} tensors differ, the first is {name}, by up to "
    assert found["weights.safetensors"].startswith(one_of)


def test_weights_are_compared_by_their_bits() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert weights_difference({"a": nan}, {"a": nan.clone()}) == ""
    assert "differ" in weights_difference({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)})
    assert weights_difference({"a": nan}, {"b": nan}) == "only one of both has the tensor a"
    halves = {"a": nan.half()}
    assert weights_difference({"a": nan}, halves) == "a is torch.float32 (2,), now torch.float16 (2,)"


def test_a_run_that_ended_earlier_is_told_by_its_lines() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert lines_difference(lines, lines) == ""
    assert lines_difference(lines, lines[:1]) == "has 2 lines, now 1; the first 1 are the same"
    assert lines_difference(lines[:1], [{"step": 1}]) == "line 1 (step 1): loss is 2.0, now None"


def test_an_environment_tells_what_may_be_the_reason() -> None:
    before = {
        "command": "a",
        "versions": {"torch": "2.11"},
        "git": {"commit": "1", "dirty": False},
        "threads": 2,
    }
    now = {"command": "b", "versions": {"torch": "2.12"}, "git": {"commit": "1", "dirty": True}, "new": 1}
    assert environment_differences(before, now) == ["torch: 2.11, now 2.12"]


def test_what_cannot_be_run_again_is_one_sentence(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        parse(Replay, [str(tmp_path)]).execute()
    with pytest.raises(UserError, match="is the run itself"):
        parse(Replay, [str(trained_run), "--out", str(trained_run)]).execute()
    converted = tmp_path / "converted"
    converted.mkdir()
    for name in ("config.yaml", "model.json", "weights.safetensors", "DONE"):
        (converted / name).write_text("" if name == "DONE" else "file: x.pth\n")
    with pytest.raises(UserError, match="not the folder of a training or a search"):
        parse(Replay, [str(converted)]).execute()
