"""What a report is made of: diagrams of every packaged space, and checked intervals of predictions."""

from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import kendalltau
from shapes import sticking_out

import ofa.space.space
from engine.plot.canvas import Outline, to_svg, write_png
from engine.statistics import tau_in_bands
from ofa.space.arch import largest, smallest
from ofa.space.codes import decode, encode, sample_codes, thermometer
from ofa.space.space import Space, load_space
from predictors.accuracy.cross_validation import (
    CrossValidated,
    predict_pairs,
    predictor_quality,
    quality_in_bands,
)
from predictors.accuracy.validation import chance_sentence
from predictors.reporting.architecture import draw_architecture, shades
from predictors.reporting.classes import class_pictures, class_table
from predictors.reporting.figures import describe_half
from predictors.reporting.findings import SelectedRecord, SelectedSubnet, short_names

SPACES = sorted(path.stem for path in (Path(ofa.space.space.__file__).parent / "spaces").glob("*.yaml"))


@pytest.mark.parametrize("name", SPACES)
def test_diagrams_show_every_block_of_every_space(name: str) -> None:
    space = load_space(name)
    for arch in (
        smallest(space),
        largest(space),
        decode(space, sample_codes(space, 1, np.random.default_rng(0))[0]),
    ):
        drawing = draw_architecture(name, space, arch)
        assert list(sticking_out(drawing)) == []
        boxes = [s for s in drawing.shapes if isinstance(s, Outline) and ", block " in s.title]
        assert len(boxes) == sum(arch.depth)
        for i, depth in enumerate(arch.depth):
            mine = [b for b in boxes if b.title.startswith(f"stage {i + 1},")]
            kernels = [arch.kernel[space.slot(i, block)] for block in range(depth)]
            assert [b.fill for b in mine] == [shades(space)[k] for k in kernels]
            assert all(f" {arch.width[i + 1]} channels" in b.title for b in mine)
            for block, kernel in zip(mine, kernels, strict=True):
                assert (f"kernel {kernel}," if kernel else "no elastic kernel,") in block.title
        assert (encode(space, arch) == encode(space, largest(space))).all() or any(
            s.dashed for s in drawing.shapes if isinstance(s, Outline)
        )


def test_intervals_of_predictions_hold_what_they_promise(tiny: ofa.space.space.Space) -> None:
    """Accuracy that a predictor can learn, with noise: about 90% of measurements are inside, and wider noise
    makes wider intervals."""
    rng = np.random.default_rng(0)
    rows = np.unique(sample_codes(tiny, 5_000, rng), axis=0)
    X = thermometer(tiny, rows)
    clean = 0.6 + 0.02 * X @ rng.random(X.shape[1])
    widths = []
    for noise in (0.003, 0.03):
        judged = predict_pairs(
            X, clean + noise * rng.standard_normal(len(X)), 1_000 * rows.sum(1).astype(np.int64), 0
        )
        assert judged is not None
        assert 0.85 <= predictor_quality(judged).coverage <= 0.95
        widths.append(float(np.median(judged.high - judged.low)))
        assert predictor_quality(judged).tau == pytest.approx(
            kendalltau(judged.measured, judged.predicted).statistic
        )
    assert 3 * widths[0] < widths[1]
    assert predict_pairs(X[:19], clean[:19], np.arange(19), 0) is None


def test_bands_and_near_pairs() -> None:
    """Predictions that know sizes only: a high tau overall, none within a size."""
    rng = np.random.default_rng(0)
    macs = np.repeat(np.arange(1, 6) * 10**8, 20)
    measured = macs / 1e9 + 0.01 * rng.standard_normal(100)
    flat = np.zeros(100)
    judged = CrossValidated(measured, macs / 1e9, flat, flat + 1, macs)
    assert predictor_quality(judged).tau > 0.85
    split = quality_in_bands(judged)
    assert [(low, high, t.pairs) for low, high, t in split] == [
        (m, m, 20) for m in sorted(set(macs.tolist()))
    ]
    assert np.isnan(tau_in_bands(judged.measured, judged.predicted, macs))
    assert tau_in_bands(measured, measured, macs) == 1 and tau_in_bands(measured, -measured, macs) == -1
    assert quality_in_bands(CrossValidated(*(values[:20] for values in judged))) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["100k-15ms-size20MB", "1M-15ms-size20MB"], ["100k", "1M"]),
        (["100k-15ms", "1M-20ms"], ["100k-15ms", "1M-20ms"]),
        (["15ms-size20MB"], ["15ms-size20MB"]),
        (["1M", "1M-15ms"], ["1M", "1M-15ms"]),
        (["a-b", "b-a"], ["a-b", "b-a"]),
    ],
)
def test_labels_leave_out_what_all_names_have(tiny: Space, names: list[str], short: list[str]) -> None:
    arch = smallest(tiny)
    record = SelectedRecord(arch=arch, macs=1, val_accuracy=0.5)
    subnets = [SelectedSubnet(name, record, arch, datetime.now()) for name in names]
    assert short_names(subnets) == dict(zip(names, short, strict=True))


def test_half_of_a_budget_is_no_loss_where_the_difference_may_be_chance(tiny: Space) -> None:
    half = {"arch": smallest(tiny), "macs": 10_000, "val_accuracy": 0.9, "expected_accuracy": 0.9}
    whole = {"arch": largest(tiny), "macs": 20_000, "val_accuracy": 0.92, "expected_accuracy": 0.92}
    told = []
    for std in (0.001, 0.01):
        errors = {"expected_std": std}
        record = SelectedRecord.model_validate(whole | errors | {"half": half | errors})
        told.append(describe_half(record, 150))
    assert told[0].startswith("Half of the budget would give 90.0% instead of 92.0%")
    assert told[1] == (
        "150 validation images cannot tell it from a subnet within half of the budget, of 10k MACs"
    )


def test_a_ranking_by_chance_is_called_so() -> None:
    assert chance_sentence(0.05, 40, 150).startswith(
        "The predictor ranks the 40 collected subnets no better than chance"
    )
    assert chance_sentence(float("nan"), 40, 150) != ""
    assert chance_sentence(0.5, 40, 150) == ""


def test_the_worst_mistakes_are_named_and_equal_names_stay_apart() -> None:
    confusion = np.array([[5, 3, 0], [0, 9, 0], [1, 0, 4]])
    (picture,) = class_pictures({"60k": confusion}, ["cat", "dog", "cat"]).values()
    assert picture.caption.startswith(
        "Most often it takes cat for dog (3 of 8 images), cat for cat (1 of 5 images). Darker"
    )
    assert picture.rows[2] == {"true class": "cat", "cat (0)": 1, "dog": 0, "cat (2)": 4}
    (right,) = class_pictures({"60k": np.diag([5, 5])}, ["cat", "dog"]).values()
    assert right.caption.startswith("It takes no image for another class.")


def test_hostile_class_names_are_text_in_page_and_picture(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;", "$x^", "[/b]", "\\frac"]
    confusions = {"<b>": np.arange(36).reshape(6, 6)}
    page = "".join(class_table(confusions, names))
    # As XML, since everything that is not escaped would be an element or an error there.
    cells = [text for text in ElementTree.fromstring(f"<div>{page}</div>").itertext()]
    assert set(names) <= set(cells) and "<b>" in cells
    for picture in class_pictures(confusions, names).values():
        found = ElementTree.fromstring(to_svg(picture.drawing))
        assert not [e for e in found.iter() if e.tag.rpartition("}")[2] in ("script", "img", "b")]
        assert all(not key.startswith("on") for e in found.iter() for key in e.attrib)
        write_png(picture.drawing, tmp_path / "a.png")  # no formula either, where it is drawn
        assert (tmp_path / "a.png").stat().st_size > 1000
