"""Charts: ticks, labels that do not cover each other, lines of fronts, and what few points look like."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from shapes import extent, sticking_out

from engine.config import format_count
from engine.plot.canvas import COLORS, Drawing, Words, side_by_side, to_svg, wrap_text, write_png
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


LONG = "600M-15.5ms-size20MB-memory64MB-params5.3M"  # the name of a budget with five limits


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("600M", ["600M"]),
        (LONG, ["600M-15.5ms-", "size20MB-memory64MB-", "params5.3M"]),
        ("Staffordshire Bull Terrier", ["Staffordshire Bull", "Terrier"]),
        ("x" * 30, ["x" * 20, "x" * 10]),
        ("x" * 90, ["x" * 20, "x" * 20, "x" * 20, "x" * 19 + "…"]),
        ("", [""]),
    ],
)
def test_a_long_name_is_wrapped_and_not_cut(text: str, lines: list[str]) -> None:
    assert wrap_text(text, 20, 4) == lines


def test_labels_and_titles_have_the_whole_name() -> None:
    points = [Point(1e6 * (i + 1), 0.5 + i / 20, label=f"{i}-{LONG}") for i in range(6)]
    axes = (Axis("MACs", format_count, log=True), Axis("accuracy", "{:g}".format, most=1))
    drawing = draw_chart("chart", *axes, [Series("points", "star", "chosen", 9, points)])
    assert list(sticking_out(drawing)) == []
    bold = [s.text for s in drawing.shapes if isinstance(s, Words) and s.bold]
    for i in range(6):
        assert f"{i}-{LONG}" in "".join(bold)
    both = side_by_side("all", [Drawing(f"{LONG}, {LONG}", 420, 50, ()), Drawing("a", 420, 50, ())], 2)
    assert "".join(s.text for s in both.shapes if isinstance(s, Words)) == f"{LONG},{LONG}a"
    assert list(sticking_out(both)) == []


def test_the_last_tick_is_inside_the_drawing() -> None:
    """A tick at the right end, with a text that is wider than the margin."""
    points = [Point(0.035, 0.5), Point(0.05, 0.6)]
    axes = (Axis("latency", "{:.3f} milliseconds".format), Axis("accuracy", "{:g}".format, most=1))
    drawing = draw_chart("chart", *axes, [Series("points", "star", "chosen", 9, points)])
    assert list(sticking_out(drawing)) == []


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = []
    for i in (1, 3, 5):
        value = int(color[i : i + 2], 16) / 255
        channels.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


@pytest.mark.parametrize("paper", [0, 1], ids=["light", "dark"])
def test_texts_and_marks_stand_out(paper: int) -> None:
    light = {role: luminance(colors[paper]) for role, colors in COLORS.items()}

    def contrast(one: float, other: float) -> float:
        return (max(one, other) + 0.05) / (min(one, other) + 0.05)

    for role in ("ink", "quiet", "chosen", "extreme"):
        assert min(contrast(light[role], light["paper"]), contrast(light[role], light["panel"])) >= 4.5
    for role in ("shade1", "shade2", "shade3", "shade4", "grid"):
        assert contrast(light["ink"], light[role]) >= 4.5, "numbers of a confusion, kernels of a block"
    for role in ("known", "random"):
        assert contrast(light[role], light["panel"]) >= 3
