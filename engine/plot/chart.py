"""Charts of points: axes with round ticks, whiskers, lines, and labels that do not print over each other."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil, cos, exp, floor, inf, log, log10, pi, sin
from typing import Literal, NamedTuple

from engine.plot.canvas import XY, Disc, Drawing, Outline, Role, Shape, Words, box, text_width
from engine.plot.labels import Box, Label, place_labels, points_along

# Pixels.
WIDTH, HEIGHT = 420.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 24.0, 44.0
ROW = 19.0  # of the legend
TEXT, SMALL = 12.0, 11.5
LARGE_MARK = 4  # marks above this size stand out: so do their whiskers, which no label may cover
LINES = ("line", "dashes")
Marker = Literal["disc", "star", "triangle", "line", "dashes"]


class Axis(NamedTuple):
    """What is drawn along an axis.

    label: what it is, with its unit.
    format: of the text at a tick.
    log: whether equal distances are equal ratios.
    most: no tick is above it, such as 1 for a share.
    """

    label: str
    format: Callable[[float], str]
    log: bool = False
    most: float = inf


class Point(NamedTuple):
    """A value pair, with an interval of y, a label to print and a title to show when pointed at."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    label: str = ""
    title: str = ""


class Series(NamedTuple):
    """Points that look alike; those of a line are its corners.

    size: radius of the marks or width of the line, in pixels.
    """

    label: str
    marker: Marker
    role: Role
    size: float
    points: Sequence[Point]

    @property
    def is_line(self) -> bool:
        """Whether the points are joined instead of marked."""
        return self.marker in LINES


def draw_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Drawing:
    """Series in the order in which they are drawn, the last one on top.

        accuracy = Axis("accuracy", "{:.0%}".format, most=1)
        draw_chart("Budgets", Axis("MACs", format_count, log=True), accuracy,
                   [Series("selected", "star", "chosen", 9, [Point(600e6, 0.78, label="600M")])])

    Args:
        title: of the drawing.
        x: the axis to the right.
        y: the axis upwards; its label stands above the chart.
        series: those without points are left out.
    """
    series = [s for s in series if s.points]
    legend, rows = _legend(series)
    frame = Box(LEFT, TOP + ROW * rows, WIDTH - RIGHT, HEIGHT - BOTTOM)
    xs: list[float] = []
    ys: list[float] = []
    for s in series:
        for p in s.points:
            xs.append(p.x)
            ys += [p.y, *(p.interval or ())]
    across = _Scale(x, xs, frame.x0, frame.x1)
    up = _Scale(y, ys, frame.y1, frame.y0)
    shapes = [*_axes(across, up, frame), Words(8, 16, y.label, TEXT, "quiet"), *legend]
    for s in series:
        shapes += _marks(s, across, up)
    # Labels come last, so they are drawn above everything.
    shapes += place_labels(_labels(series, across, up), _obstacles(series, across, up), frame)
    return Drawing(title, WIDTH, HEIGHT, tuple(shapes))


class _Scale:
    """From values of an axis to pixels between `start` and `end`, with some room around the values."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis, self.start, self.end = axis, start, end
        low, high = min(values), max(values)
        if axis.log:
            low, high = log(low), log(high)
        # Where all values are equal, there is no range to take a share of.
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1
        self.low, self.high = low - pad, high + 2 * pad

    def __call__(self, value: float) -> float:
        if self.axis.log:
            value = log(value)
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.axis.log:
            return log_ticks(exp(self.low), exp(self.high))
        return [tick for tick in linear_ticks(self.low, self.high) if tick <= self.axis.most]


def linear_ticks(low: float, high: float, count: int = 7) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, about `count` at most."""
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    # 0.999: the power of ten is not exact.
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(ceil(low / step), floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis from low to high: 1, 2, 5, 10, 20...

    Where those are too few, the ticks are evenly spaced; where they are too many, they are powers of ten.
    """
    ticks = []
    for decade in range(floor(log10(low)), ceil(log10(high)) + 1):
        for m in (1, 2, 5):
            tick = m * 10.0**decade
            if low <= tick <= high:
                ticks.append(tick)
    if len(ticks) < 3:
        return linear_ticks(low, high)
    if len(ticks) <= 8:
        return ticks
    return [tick for tick in ticks if f"{tick:e}".startswith("1.")]


def front_line(front: Sequence[XY], until: float) -> list[Point]:
    """Corners of the line that keeps the y of a front until its next x, and the last y up to x = `until`."""
    if not front:
        return []
    corners: list[Point] = []
    for (x, y), (next_x, _) in pairwise(front):
        corners += [Point(x, y), Point(next_x, y)]
    x, y = front[-1]
    return [*corners, Point(x, y), Point(max(until, x), y)]


def _axes(across: _Scale, up: _Scale, frame: Box) -> Iterator[Shape]:
    yield box(frame.x0, frame.y0, frame.x1 - frame.x0, frame.y1 - frame.y0, fill="panel")
    for tick in up.ticks():
        y = up(tick)
        yield Outline(((frame.x0, y), (frame.x1, y)), line="grid")
        yield Words(frame.x0 - 6, y + 4, up.axis.format(tick), SMALL, "quiet", "end")
    end_of_last = -inf
    for tick in across.ticks():
        x, text = across(tick), across.axis.format(tick)
        yield Outline(((x, frame.y0), (x, frame.y1)), line="grid")
        # The line of a tick stays where its text has no room.
        half = text_width(text, SMALL) / 2
        if x - half > end_of_last + 4:
            # The last text may be wider than the margin: then it stands a little further left.
            middle = min(x, WIDTH - 2 - half)
            end_of_last = middle + half
            yield Words(middle, frame.y1 + 16, text, SMALL, "quiet", "middle")
    yield Words((frame.x0 + frame.x1) / 2, frame.y1 + 36, across.axis.label, TEXT, "quiet", "middle")


def _legend(series: Sequence[Series]) -> tuple[list[Shape], int]:
    """What each look means, and in how many rows it stands."""
    if not series:
        return [], 0
    shapes: list[Shape] = []
    x, row = 8.0, 0
    for s in series:
        width = 28 + text_width(s.label, SMALL)
        if x > 8 and x + width > WIDTH - 4:
            x, row = 8, row + 1
        y = TOP + ROW * row + 9
        if s.is_line:
            shapes.append(_line(s, ((x, y), (x + 20, y))))
        else:
            shapes.append(_mark(s, x + 10, y))
        shapes.append(Words(x + 24, y + 4, s.label, SMALL))
        x += width
    return shapes, row + 1


def _marks(s: Series, across: _Scale, up: _Scale) -> Iterator[Shape]:
    """A series as a line, or as whiskers and the marks above them."""
    if s.is_line:
        yield _line(s, tuple((across(p.x), up(p.y)) for p in s.points))
        return
    line, width = s.role, 1.5
    if s.size <= LARGE_MARK:
        line, width = "known", 1  # many thin whiskers in the background
    for p in s.points:
        if p.interval:
            x, low, high = across(p.x), up(p.interval[0]), up(p.interval[1])
            yield Outline(((x, low), (x, high)), line=line, width=width)
    # Marks come after all whiskers of the series, so they are drawn above them.
    for p in s.points:
        yield _mark(s, across(p.x), up(p.y), p.title)


def _line(s: Series, points: tuple[XY, ...]) -> Outline:
    return Outline(points, line=s.role, width=s.size, dashed=s.marker == "dashes")


def _mark(s: Series, x: float, y: float, title: str = "") -> Shape:
    if s.marker == "disc":
        return Disc(x, y, s.size, s.role, title)
    radii = [s.size] * 3  # of the corners of a triangle
    if s.marker == "star":
        radii = [s.size, 0.45 * s.size] * 5
    points = []
    for i in range(len(radii) + 1):  # the last corner closes the outline
        angle, radius = 2 * pi * i / len(radii), radii[i % len(radii)]
        points.append((x + radius * sin(angle), y - radius * cos(angle)))
    return Outline(tuple(points), s.role, "paper", 1, title=title)


def _labels(series: Sequence[Series], across: _Scale, up: _Scale) -> list[Label]:
    """The labels of marks; points of one look in one place share a label."""
    texts: dict[tuple[XY, Role], list[str]] = {}
    for s in series:
        for p in s.points:
            if p.label and not s.is_line:
                texts.setdefault(((across(p.x), up(p.y)), s.role), []).append(p.label)
    labels = []
    for (point, role), words in texts.items():
        labels.append(Label(", ".join(words), point, role))
    return labels


def _obstacles(series: Sequence[Series], across: _Scale, up: _Scale) -> list[XY]:
    """What labels should not cover, in pixels: points, and points along lines and along large whiskers."""
    spots: list[XY] = []
    lines: list[list[XY]] = []
    for s in series:
        points = [(across(p.x), up(p.y)) for p in s.points]
        spots += points
        if s.is_line:
            lines.append(points)
        if s.size > LARGE_MARK:
            for p in s.points:
                if p.interval:
                    lines.append([(across(p.x), up(end)) for end in p.interval])
    for line in lines:
        for start, end in pairwise(line):
            spots += points_along(start, end)
    return spots
