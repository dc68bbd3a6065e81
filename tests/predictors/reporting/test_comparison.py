"""What is said of each budget: random subnets of its size only if they have its size, and one sentence."""

import numpy as np
import pytest

from engine.statistics import Floats
from ofa.cost import costs_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, encode
from ofa.space.space import Space, load_space
from predictors.report import _print_comparisons
from predictors.reporting.comparison import (
    Comparison,
    compare_with_rivals,
    format_share,
    headline,
    lead_sentence,
    points_apart,
)
from predictors.reporting.exported import ExportedFile
from predictors.reporting.rivals import random_rivals

IMAGES = {"val": 504, "test": 539}


@pytest.mark.slow
@pytest.mark.parametrize("end", [smallest, largest])
def test_rivals_have_the_same_macs_also_at_the_ends_of_a_space(end: object) -> None:
    """No one of 200,000 uniform samples is within 5% of the smallest or the largest subnet."""
    space = load_space("ofa_mbv3")

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 10, 3).macs

    row = encode(space, end(space))  # type: ignore[operator]
    rivals = random_rivals(space, macs, row, 20, np.random.default_rng(0))
    assert len(np.unique(rivals, axis=0)) == 20
    assert np.abs(macs(rivals) / macs(row[None]) - 1).max() <= 0.05
    assert not (rivals == row).all(axis=1).any()


def test_rivals_of_a_small_space_are_all_that_there_are(tiny: Space, everything: Codes) -> None:
    macs = costs_of(tiny, everything, 10, 1).macs
    for i in (0, len(everything) // 2, len(everything) - 1):
        near = np.abs(macs / macs[i] - 1) <= 0.05
        found = random_rivals(
            tiny,
            lambda rows: costs_of(tiny, rows, 10, 1).macs,
            everything[i],
            1000,
            np.random.default_rng(0),
        )
        assert len(found) == int(near.sum()) - 1, "without itself"


def test_few_rivals_are_no_comparison() -> None:
    four = [(100, 0.5), (101, 0.6), (99, 0.4), (100, 0.3)]
    assert compare_with_rivals(100, 0.55, four) == (4, None, None, None)
    assert compare_with_rivals(100, 0.55, [*four, (105, 0.8)]) == (5, 0.5, 3, pytest.approx(0.05))
    assert compare_with_rivals(100, 0.55, four, fewest=4).beaten == 3, "the user asked for no more"


def test_points_of_the_same_images() -> None:
    hits: Floats = np.array([1.0, 1, 0, 1])
    assert points_apart(hits, np.array([1.0, 0, 0, 1])) == (25, pytest.approx(100 * np.sqrt(3) / 8))
    assert points_apart(hits, hits) == (0, 0)


def comparison(**values: object) -> Comparison:
    usual: dict[str, object] = {
        "budget": "300k",
        "kind": "selected",
        "macs": 248_000,
        "params": 21_000,
        "latency_ms": None,
        "expected_accuracy": None,
        "expected_low": None,
        "expected_high": None,
        "val_accuracy": 0.96,
        "test_accuracy": 0.962,
        "tuned_accuracy": None,
        "random_count": 20,
        "random_median": 0.94,
        "random_beaten": 19,
        "random_macs_apart": 0.05,
        "below_largest": 0.8,
        "below_std": 0.4,
        "share_of_largest": 0.07,
    }
    return Comparison(**(usual | values))  # type: ignore[arg-type]


FEW = {"random_count": 3, "random_median": None, "random_beaten": None, "random_macs_apart": None}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {},
            "300k: 96.2% ±0.8 on test images with 248k MACs; better than 19 of 20 random subnets of the "
            "same size; 0.8 ±0.4 points below the largest subnet, with 7% of its MACs.",
        ),
        (
            {"tuned_accuracy": 0.98, "below_largest": -0.3, "share_of_largest": 0.004},
            "300k: 98.0% ±0.6 on test images, tuned, with 248k MACs. Untuned, like all that it is "
            "compared with, 96.2% ±0.8: better than 19 of 20 random subnets of the same size; 0.3 ±0.4 "
            "points above the largest subnet, with 0.4% of its MACs.",
        ),
        (
            FEW | {"below_largest": 0.0, "below_std": 0.0},
            "300k: 96.2% ±0.8 on test images with 248k MACs; too few others have its MACs within 5% "
            "to compare with (3); as good as the largest subnet, with 7% of its MACs.",
        ),
        (
            FEW | {"random_count": 0, "share_of_largest": 1.0, "below_largest": 0.0, "below_std": 0.0},
            "300k: 96.2% ±0.8 on test images with 248k MACs; too few others have its MACs within 5% "
            "to compare with (none); this is the largest subnet.",
        ),
    ],
)
def test_the_sentence_of_a_budget(values: dict[str, object], said: str) -> None:
    assert headline(comparison(**values), IMAGES) == said


def test_the_sentence_has_files_and_more() -> None:
    file = ExportedFile("300k", "300k.onnx", "cpu", "float32", 1_234_567, 0.96, 504, 0.5, 0.41, 0.5, 1)
    slow = file._replace(file="300k.ort", p50_ms=None, bytes=81_000)
    said = headline(comparison(), IMAGES, [file, slow], ["Half of it would do"])
    assert said.endswith(
        "MACs. Half of it would do. Exported: 300k.onnx (1.23 MB, 0.41 ms), 300k.ort (81 kB, 0.5 ms)."
    )
    many = headline(comparison(), IMAGES, [file] * 5)
    assert many.endswith("300k.onnx (1.23 MB, 0.41 ms), and 2 more.")


def test_the_first_sentence_counts_only_what_was_compared() -> None:
    ends = [comparison(budget=kind, kind=kind, **FEW) for kind in ("smallest", "largest")]
    one = lead_sentence([ends[0], comparison(), ends[1]], 539)
    assert one == (
        "On test images, the chosen subnet is 2.2 points above the median random subnet of the same size "
        "(MACs within 5%), and better than 19 of 20."
    )
    assert "may be chance" not in one
    few = lead_sentence([ends[0], comparison(), ends[1]], 100)
    assert few.endswith("better than 19 of 20; so small a difference may be chance.")
    tuned = lead_sentence([ends[0], comparison(tuned_accuracy=0.99), ends[1]], 539)
    assert tuned.startswith("On test images and untuned, the chosen subnet is 2.2 points above")
    assert "the 2 chosen subnets are on average" in lead_sentence([comparison(), comparison(), *ends], 539)
    assert "one of the 2 chosen subnets is 2.2" in lead_sentence(
        [comparison(), comparison(**FEW), *ends], 539
    )
    assert "fewer than 5 other subnets within 5%" in lead_sentence([comparison(**FEW), *ends], 539)


def test_the_table_says_what_is_tuned_where_something_is(capsys: pytest.CaptureFixture[str]) -> None:
    for tuned in (None, 0.98):
        _print_comparisons([comparison(tuned_accuracy=tuned), comparison(kind="largest")], IMAGES)
        assert ("only 'test, tuned' is tuned" in capsys.readouterr().out) == (tuned is not None)


def test_small_shares_keep_a_digit() -> None:
    assert [format_share(share) for share in (1.0, 0.28, 0.01, 0.004, 0.00012)] == [
        "100%",
        "28%",
        "1%",
        "0.4%",
        "0.01%",
    ]
