"""Charts: ticks, labels that do not cover each other, lines of fronts, and what few points look like."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from shapes import extent, sticking_out

from engine.config import format_count
from engine.plot.canvas import Words, to_svg, write_png
from engine.plot.chart import (
    HEIGHT,
    WIDTH,
    Axis,
    Point,
    Series,
    draw_chart,
    front_line,
    linear_ticks,
    log_ticks,
)
from engine.plot.labels import Box, Label, place_labels


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
    labels = [Label(f"{i}00M-15ms-size20MB", spot, "chosen") for i, spot in enumerate(spots)]
    words = [s for s in place_labels(labels, spots, Box(50, 50, WIDTH, HEIGHT)) if isinstance(s, Words)]
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


def test_line_of_a_front() -> None:
    line = [(p.x, p.y) for p in front_line([(1.0, 0.3), (3.0, 0.5), (5.0, 0.9)], 6)]
    assert line == [(1, 0.3), (3, 0.3), (3, 0.5), (5, 0.5), (5, 0.9), (6, 0.9)]
    assert front_line([], 6) == []
