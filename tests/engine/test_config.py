"""Counts, recipes, merging, and errors as one sentence."""

from pathlib import Path

import pytest

from engine.config import (
    are,
    counted,
    find_recipe,
    format_count,
    format_duration,
    merge,
    parse_count,
    parse_duration,
    read_yaml,
)
from engine.errors import UserError
from engine.training import print_left_out


@pytest.mark.parametrize(
    "text", ["600M", "0.6G", "600e6", "600000000", 600_000_000, "600 m", "600000k", "6e+8"]
)
def test_same_count(text: object) -> None:
    assert parse_count(text) == 600_000_000


@pytest.mark.parametrize("text", ["600Q", "-3M", "", "M", "nan", "inf", True, "1e-3M", "1,5M"])
def test_not_a_count(text: object) -> None:
    with pytest.raises(ValueError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize("value", [1, 999, 1000, 100_000, 1_234_567, 600_000_000, 1_999_999_999])
def test_exact_names_read_back(value: int) -> None:
    assert parse_count(format_count(value, digits=15)) == value


def test_short_names_round() -> None:
    assert [format_count(v) for v in (999_999, 1_234_567, 66_304, 12)] == ["1M", "1.23M", "66.3k", "12"]
    assert [format_count(v, digits=2) for v in (960_000, 123_456, 99_600, 45_000_000)] == [
        "960k",
        "120k",
        "100k",
        "45M",
    ]


def test_merge_goes_section_by_section() -> None:
    base = {"sgd": {"lr": 1, "momentum": 2}, "data": {"name": "npz", "path": "x"}}
    assert merge(base, {"sgd": {"lr": 3}})["sgd"] == {"lr": 3, "momentum": 2}
    assert merge(base, {"data": {"name": "digits"}})["data"] == {"name": "digits"}
    assert merge(base, {"data": {"path": "y"}})["data"] == {"name": "npz", "path": "y"}


def test_recipes_by_name_and_path() -> None:
    assert read_yaml(find_recipe("ofa/digits")) == read_yaml(find_recipe("configs/ofa/digits.yaml"))
    with pytest.raises(UserError, match="did you mean 'ofa/cifar10'"):
        find_recipe("ofa/cifar11")


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not valid YAML"), ("- 1", "must hold"), ("", "must hold")]
)
def test_broken_yaml(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_yaml(path)


def test_durations_are_read_and_written() -> None:
    for text, seconds in (("3h50m", 13800), ("90m", 5400), ("45s", 45), ("1.5h", 5400), ("2h 5m 1s", 7501)):
        assert parse_duration(text) == seconds
    assert parse_duration(12.5) == parse_duration("12.5") == 12.5
    for text in ("", "soon", "3h50", "5 min", "-3m", "m"):
        with pytest.raises(ValueError, match="write it as 3h50m"):
            parse_duration(text)
    told = [format_duration(seconds) for seconds in (3, 119, 120, 3580, 13800, 14400)]
    assert told == ["3s", "119s", "2m", "1h00m", "3h50m", "4h00m"]


@pytest.mark.parametrize(
    ("noun", "nouns"), [("batch", "batches"), ("epoch", "epochs"), ("process", "processes")]
)
def test_a_number_agrees_with_what_it_counts(noun: str, nouns: str) -> None:
    said = [f"{counted(number, noun)} {are(number)}" for number in range(3)]
    assert said == [f"0 {nouns} are", f"1 {noun} is", f"2 {nouns} are"]


def test_left_over_images_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_left_out(65, 64)
    assert capsys.readouterr().out == (
        "an epoch: 1 batch of 64; 1 image is left over and not used, others in each epoch\n"
    )
