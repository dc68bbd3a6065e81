"""`python -m ofa.space` says what a space holds and which MACs a sampling draws."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.command.cli import parse
from engine.errors import UserError
from ofa.space.__main__ import Describe
from ofa.space.published import find_arch
from ofa.space.space import load_space


def test_the_space_its_extremes_and_published_subnets(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Describe, ["attentive_nas", "--draws", "50"]).execute() == 0
    said = capsys.readouterr().out
    for words in (
        "4.403e+11 architectures",
        "203.4M",
        "1.939G",
        "23.4M",
        "alphanet_a5_1",
        "80.62%",
        "drawn by 'uniform'",
    ):
        assert words in said


def test_the_histogram_is_of_the_recipes_sampling(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "prior.png"
    flags = [
        "--sandwich.sampling.name",
        "macs_prior",
        "--sandwich.sampling.low",
        "250M",
        "--sandwich.sampling.high",
        "300M",
    ]
    words = [
        "attentive_nas",
        *flags,
        "--sandwich.sampling.samples",
        "100000",
        "--draws",
        "60",
        "--picture",
        str(picture),
    ]
    assert parse(Describe, words).execute() == 0
    said = capsys.readouterr().out
    rows = [
        line.split()
        for line in said.splitlines()
        if " to " in line and "M" in line and line.split()[1] == "to"
    ]
    counts = [int(row[3]) for row in rows]
    lows = [float(row[0].rstrip("M")) for row in rows]
    assert sum(counts) == 60
    assert 250 <= min(lows) < max(lows) < 300
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", ["alphanet", "attentive_nas"])
def test_training_recipes_are_understood(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    described = parse(Describe, ["--config", f"ofa/{recipe}"])
    assert described.space == "attentive_nas"
    assert described.sandwich.sampling.name == ("uniform" if recipe == "alphanet" else "attentive")


def test_one_architecture_is_json_that_every_command_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert parse(Describe, ["attentive_nas", "--arch", "attentive_nas_a1"]).execute() == 0
    said = capsys.readouterr().out
    assert (json.loads(said)["macs"], json.loads(said)["params"]) == (279238816, 9452872)
    (tmp_path / "a1.json").write_text(said)
    space = load_space("attentive_nas")
    assert find_arch(space, str(tmp_path / "a1.json")) == find_arch(space, "attentive_nas_a1")


def test_a_deep_stem_and_no_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Describe, ["ofa_resnet50", "--draws", "10"]).execute() == 0
    said = capsys.readouterr().out
    assert "bottleneck" in said
    assert "7.492G" not in said, "the largest is at 256 pixels"


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ofa.space", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python -m ofa.space" in done.stdout
    assert done.stderr == ""
    with pytest.raises(UserError, match="There is no space 'nowhere'"):
        parse(Describe, ["nowhere"]).execute()
