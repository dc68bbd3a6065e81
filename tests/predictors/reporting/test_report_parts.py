"""What a report is made of: ticks and labels of charts, diagrams of every packaged space, checked intervals,
fronts."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, kendalltau

import ofa.space.space
from engine.config import format_count
from engine.plot.canvas import Disc, Drawing, Outline, Shape, Words, text_width, to_svg, write_png
from engine.plot.chart import (
    HEIGHT,
    WIDTH,
    Axis,
    Point,
    Series,
    draw_chart,
    linear_ticks,
    log_ticks,
    place_labels,
    steps,
)
from ofa.space.arch import largest, smallest
from ofa.space.codes import decode, encode, sample_codes, thermometer
from ofa.space.space import load_space
from predictors.accuracy.cross_validation import HeldOut, bands, predict_held_out, trust
from predictors.accuracy.validation import tau_in_bands
from predictors.reporting.architecture import draw_architecture, shades
from predictors.reporting.findings import front_of, wilson

SPACES = sorted(path.stem for path in (Path(ofa.space.space.__file__).parent / "spaces").glob("*.yaml"))


def extent(shape: Shape) -> tuple[float, float, float, float]:
    if isinstance(shape, Outline):
        xs, ys = zip(*shape.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    if isinstance(shape, Disc):
        return shape.x - shape.radius, shape.y - shape.radius, shape.x + shape.radius, shape.y + shape.radius
    width = 0.55 * text_width(shape.text, shape.size) / 0.6
    left = shape.x - width * {"start": 0, "middle": 0.5, "end": 1}[shape.anchor]
    return left, shape.y - shape.size, left + width, shape.y + 3


def sticking_out(drawing: Drawing) -> Iterator[Shape]:
    for shape in drawing.shapes:
        x0, y0, x1, y1 = extent(shape)
        if x0 < -1 or y0 < -1 or x1 > drawing.width + 1 or y1 > drawing.height + 1:
            yield shape


@pytest.mark.parametrize(
    ("low", "high"), [(0.41, 0.93), (0.9712, 0.9737), (0.0, 1.0), (-0.05, 1.05), (1e-4, 3e-4)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 8 and min(ticks) >= low - 1e-9 and max(ticks) <= high + 1e-9
    assert all(len(f"{t:.12g}".lstrip("-0.")) <= 5 for t in ticks)


@pytest.mark.parametrize(("low", "high"), [(2e4, 4e6), (3.1e8, 3.9e8), (1, 1e9), (0.3, 0.9)])
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 11 and min(ticks) >= low and max(ticks) <= high and ticks == sorted(set(ticks))


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    """Twelve budgets within 40 pixels, with long names."""
    rng = np.random.default_rng(0)
    spots = [(200 + 40 * float(a), 150 + 40 * float(b)) for a, b in rng.random((12, 2))]
    named = [(f"{i}00M-15ms-size20MB", spot, "chosen") for i, spot in enumerate(spots)]
    words = [s for s in place_labels(named, spots, (50, 50, WIDTH, HEIGHT)) if isinstance(s, Words)]
    assert len(words) == 12
    for one, other in combinations(map(extent, words), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(
        x0 >= 50 and y0 >= 50 and x1 <= WIDTH and y1 <= HEIGHT + 3 for x0, y0, x1, y1 in map(extent, words)
    )


@pytest.mark.parametrize(
    "points", [[Point(1e6, 0.5)], [Point(1e6, 1.0), Point(1e6, 1.0)], [Point(1, 0.0), Point(1e9, 1.0)]]
)
def test_charts_of_few_or_equal_points(points: list[Point], tmp_path: Path) -> None:
    axes = (Axis("MACs", format_count, log=True), Axis("accuracy", lambda v: f"{v:g}", most=1))
    drawing = draw_chart(
        "chart",
        *axes,
        [Series("points", "star", "chosen", 9, points), Series("none", "disc", "random", 3, [])],
    )
    assert list(sticking_out(drawing)) == []
    assert to_svg(drawing).count("nan") == 0
    write_png(drawing, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


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
        assert (encode(space, arch) == encode(space, largest(space))).all() or any(
            s.dashed for s in drawing.shapes if isinstance(s, Outline)
        )


def test_front_and_its_steps() -> None:
    points = [(3.0, 0.5), (1.0, 0.3), (2.0, 0.3), (4.0, 0.4), (5.0, 0.9), (1.0, 0.2)]
    front = front_of(points)
    assert front == [(1.0, 0.3), (3.0, 0.5), (5.0, 0.9)]
    line = [(p.x, p.y) for p in steps(front, 6)]
    assert line == [(1, 0.3), (3, 0.3), (3, 0.5), (5, 0.5), (5, 0.9), (6, 0.9)]


@pytest.mark.parametrize(("right", "images"), [(0, 50), (50, 50), (371, 539), (9, 10)])
def test_interval_of_an_accuracy(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(0.9, "wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_intervals_of_predictions_hold_what_they_promise(tiny: ofa.space.space.Space) -> None:
    """Accuracy that a predictor can learn, with noise: about 90% of measurements are inside, and wider noise
    makes wider intervals."""
    rng = np.random.default_rng(0)
    rows = np.unique(sample_codes(tiny, 5_000, rng), axis=0)
    X = thermometer(tiny, rows)
    clean = 0.6 + 0.02 * X @ rng.random(X.shape[1])
    widths = []
    for noise in (0.003, 0.03):
        judged = predict_held_out(
            X, clean + noise * rng.standard_normal(len(X)), 1_000 * rows.sum(1).astype(np.int64), 0
        )
        assert judged is not None
        assert 0.85 <= trust(judged).coverage <= 0.95
        widths.append(float(np.median(judged.high - judged.low)))
        assert trust(judged).tau == pytest.approx(kendalltau(judged.measured, judged.predicted).statistic)
    assert 3 * widths[0] < widths[1]
    assert predict_held_out(X[:19], clean[:19], np.arange(19), 0) is None


def test_bands_and_near_pairs() -> None:
    """Predictions that know sizes only: a high tau overall, none within a size."""
    rng = np.random.default_rng(0)
    macs = np.repeat(np.arange(1, 6) * 10**8, 20)
    measured = macs / 1e9 + 0.01 * rng.standard_normal(100)
    flat = np.zeros(100)
    judged = HeldOut(measured, macs / 1e9, flat, flat + 1, macs)
    assert trust(judged).tau > 0.85
    split = bands(judged)
    assert [(low, high, t.pairs) for low, high, t in split] == [
        (m, m, 20) for m in sorted(set(macs.tolist()))
    ]
    assert np.isnan(tau_in_bands(judged.measured, judged.predicted, macs))
    assert tau_in_bands(measured, measured, macs) == 1 and tau_in_bands(measured, -measured, macs) == -1
    assert bands(HeldOut(*(values[:20] for values in judged))) == []
