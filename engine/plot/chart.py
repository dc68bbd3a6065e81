"""Charts of points: axes with round ticks, whiskers, step lines, and labels that do not print over each
other."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil, cos, exp, floor, hypot, inf, log, log10, pi, sin
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.plot.canvas import XY, Disc, Drawing, Outline, Role, Shape, Words, box, shorten, text_width

WIDTH, HEIGHT = 420.0, 350.0
LEFT, RIGHT, BOTTOM, ROW = 50.0, 12.0, 44.0, 19.0
TEXT, SMALL = 12.0, 11.5
LONGEST = 20
LINES = ("line", "dashes")
Marker = Literal["disc", "star", "triangle", "line", "dashes"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


class Axis(NamedTuple):
    """What is drawn along an axis. most: no tick is above it."""

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
    """Points that look alike; those of a line are its corners."""

    label: str
    marker: Marker
    role: Role
    size: float
    points: Sequence[Point]


def draw_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Drawing:
    """Series in the order in which they are drawn, the last one on top."""
    series = [s for s in series if s.points]
    legend, rows = _legend(series)
    frame = (LEFT, 24 + ROW * rows, WIDTH - RIGHT, HEIGHT - BOTTOM)
    points = [point for s in series for point in s.points]
    across = _Scale(x, [p.x for p in points], frame[0], frame[2])
    up = _Scale(y, [v for p in points for v in (p.y, *(p.interval or ()))], frame[3], frame[1])
    shapes = [*_axes(across, up, frame), Words(8, 16, y.label, TEXT, "quiet"), *legend]
    for s in series:
        shapes += _marks(s, across, up)
    spots = [(across(p.x), up(p.y)) for p in points]
    lines = [s.points for s in series if s.marker in LINES]
    lines += [
        [p._replace(y=y) for y in p.interval] for s in series if s.size > 4 for p in s.points if p.interval
    ]
    spots += [
        spot
        for line in lines
        for a, b in pairwise(line)
        for spot in _along((across(a.x), up(a.y)), (across(b.x), up(b.y)))
    ]
    named: dict[tuple[XY, Role], list[str]] = {}  # points in one place share a label
    for role, p in ((s.role, p) for s in series if s.marker not in LINES for p in s.points if p.label):
        named.setdefault(((across(p.x), up(p.y)), role), []).append(p.label)
    labels = [(", ".join(words), spot, role) for (spot, role), words in named.items()]
    return Drawing(title, WIDTH, HEIGHT, (*shapes, *place_labels(labels, spots, frame)))


def _along(start: XY, end: XY) -> Iterator[XY]:
    """Points of a line, 6 pixels apart."""
    count = ceil(hypot(end[0] - start[0], end[1] - start[1]) / 6)
    return (
        (start[0] + (end[0] - start[0]) * i / count, start[1] + (end[1] - start[1]) * i / count)
        for i in range(count)
    )


class _Scale:
    """From values to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis, self.start, self.end = axis, start, end
        low, high = min(values), max(values)
        if axis.log:
            low, high = log(low), log(high)
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1
        self.low, self.high = low - pad, high + 2 * pad

    def __call__(self, value: float) -> float:
        share = ((log(value) if self.axis.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.axis.log:
            return log_ticks(exp(self.low), exp(self.high))
        return [tick for tick in linear_ticks(self.low, self.high) if tick <= self.axis.most]


def linear_ticks(low: float, high: float, count: int = 7) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, about `count` at most."""
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(ceil(low / step), floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """As `linear_ticks`, of a logarithmic axis: 1, 2, 5, 10, 20...; where that is too few, even ones; where
    too many, powers of ten."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    if len(ticks) < 3:
        return linear_ticks(low, high)
    return ticks if len(ticks) <= 8 else [tick for tick in ticks if f"{tick:e}".startswith("1.")]


def _axes(across: _Scale, up: _Scale, frame: Box) -> Iterator[Shape]:
    x0, y0, x1, y1 = frame
    yield box(x0, y0, x1 - x0, y1 - y0, fill="panel")
    for tick in up.ticks():
        yield Outline(((x0, up(tick)), (x1, up(tick))), line="grid")
        yield Words(x0 - 6, up(tick) + 4, up.axis.format(tick), SMALL, "quiet", "end")
    end = -inf
    for tick in across.ticks():
        word = across.axis.format(tick)
        yield Outline(((across(tick), y0), (across(tick), y1)), line="grid")
        if across(tick) - text_width(word, SMALL) / 2 > end + 4:
            end = across(tick) + text_width(word, SMALL) / 2
            yield Words(across(tick), y1 + 16, word, SMALL, "quiet", "middle")
    yield Words((x0 + x1) / 2, y1 + 36, across.axis.label, TEXT, "quiet", "middle")


def _legend(series: Sequence[Series]) -> tuple[list[Shape], int]:
    """What each look means, in as many rows as it takes."""
    shapes: list[Shape] = []
    x, row = 8.0, 0
    for s in series:
        width = 28 + text_width(s.label, SMALL)
        if x > 8 and x + width > WIDTH - 4:
            x, row = 8, row + 1
        y = 24 + ROW * row + 9
        shapes.append(_mark(s, x + 10, y) if s.marker not in LINES else _line(s, ((x, y), (x + 20, y))))
        shapes.append(Words(x + 24, y + 4, s.label, SMALL))
        x += width
    return shapes, row + 1 if series else 0


def _marks(s: Series, across: _Scale, up: _Scale) -> Iterator[Shape]:
    if s.marker in LINES:
        yield _line(s, tuple((across(p.x), up(p.y)) for p in s.points))
        return
    for p in s.points:
        if p.interval:
            x, ends = across(p.x), [up(v) for v in p.interval]
            yield Outline(
                ((x, ends[0]), (x, ends[1])),
                line=s.role if s.size > 4 else "known",
                width=1.5 if s.size > 4 else 1,
            )
    for p in s.points:
        yield _mark(s, across(p.x), up(p.y), p.title)


def _line(s: Series, points: tuple[XY, ...]) -> Outline:
    return Outline(points, line=s.role, width=s.size, dashed=s.marker == "dashes")


def _mark(s: Series, x: float, y: float, title: str = "") -> Shape:
    if s.marker == "disc":
        return Disc(x, y, s.size, s.role, title)
    radii, corners = ((s.size, 0.45 * s.size), 10) if s.marker == "star" else ((s.size, s.size), 3)
    angles = [2 * pi * i / corners for i in range(corners + 1)]
    points = tuple((x + radii[i % 2] * sin(a), y - radii[i % 2] * cos(a)) for i, a in enumerate(angles))
    return Outline(points, s.role, "paper", 1, title=title)


def steps(points: Sequence[XY], until: float) -> list[Point]:
    """Corners of the line that keeps a front's y until the next x, and the last one up to `until`."""
    corners = [p for (x0, y0), (x1, y1) in pairwise(points) for p in (Point(x0, y0), Point(x1, y0))]
    return [*corners, Point(*points[-1]), Point(max(until, points[-1][0]), points[-1][1])] if points else []


def place_labels(named: Sequence[tuple[str, XY, Role]], spots: Sequence[XY], frame: Box) -> list[Shape]:
    """Each label near its point, where it covers no other label and the fewest of `spots`; a thin line where
    it is further away."""
    taken: list[Box] = []
    obstacles, points = list(spots), [spot for _, spot, _ in named]
    shapes: list[Shape] = []
    for text, spot, role in named:
        word = shorten(text, LONGEST)
        size = (text_width(word, SMALL), SMALL + 3)
        ways = [
            _beside(spot, size, 12 + 7 * ring, 2 * pi * turn / 16) for ring in range(24) for turn in range(16)
        ]
        inside = [
            b for b in ways if b[0] >= frame[0] and b[1] >= frame[1] and b[2] <= frame[2] and b[3] <= frame[3]
        ] or ways[:1]
        others, array = [point for point in points if point != spot], np.array(obstacles)
        place = min(inside, key=lambda b: _badness(b, spot, taken, array, others))
        taken.append(place)
        leader = _leader(spot, place)
        if leader:
            shapes.append(Outline((spot, leader[-1]), line="quiet", width=0.8))
            obstacles += leader
        shapes.append(Words((place[0] + place[2]) / 2, place[3] - 3, word, SMALL, role, "middle", bold=True))
    return shapes


def _beside(spot: XY, size: XY, distance: float, angle: float) -> Box:
    """A box of `size`, `distance` away from the spot in the direction of the angle (0: up, then
    clockwise)."""
    x, y = spot[0] + (distance + size[0] / 2) * sin(angle), spot[1] - (distance + size[1] / 2) * cos(angle)
    return (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def _leader(spot: XY, b: Box) -> list[XY]:
    """Points of the line from a spot to the nearest point of its label; none where that is near."""
    end = (min(max(spot[0], b[0]), b[2]), min(max(spot[1], b[1]), b[3]))
    return [*_along(spot, end), end] if hypot(end[0] - spot[0], end[1] - spot[1]) > 13 else []


def _badness(
    b: Box, spot: XY, taken: Sequence[Box], spots_N2: NDArray[np.float64], others: Sequence[XY]
) -> float:
    """Worst: on another label; then on another's point; a line through a label or past a point; covered
    spots; distance."""
    leader = _leader(spot, b)
    over = sum(b[0] - 5 < t[2] and t[0] < b[2] + 5 and b[1] < t[3] and t[1] < b[3] for t in taken)
    through = sum(t[0] <= x <= t[2] and t[1] <= y <= t[3] for x, y in leader for t in taken)
    hides = sum(b[0] - 8 < x < b[2] + 8 and b[1] - 6 < y < b[3] + 6 for x, y in others)
    past = sum(hypot(x - other[0], y - other[1]) < 9 for x, y in leader for other in others)
    covers = int(((spots_N2 > (b[0] - 3, b[1] - 3)) & (spots_N2 < (b[2] + 3, b[3] + 3))).all(axis=1).sum())
    away = hypot((b[0] + b[2]) / 2 - spot[0], (b[1] + b[3]) / 2 - spot[1])
    return 1e6 * over + 400 * hides + 300 * through + 100 * past + 15 * covers + away
