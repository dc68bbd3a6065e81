"""Where the labels of a chart go, so that they do not print over each other or hide points."""

from collections.abc import Iterator, Sequence
from math import ceil, cos, hypot, pi, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.plot.canvas import XY, Outline, Role, Shape, Words, text_width, wrap_text

SIZE = 11.5  # of the text, in pixels
LONGEST, LINES = 20, 6  # characters of a line, and lines of a label; longer ones are cut
LINE = SIZE + 3  # height of a line
LINE_STEP = 6  # pixels between the points that stand for a line
# Where a label may stand: on rings around its point. Lengths are pixels.
NEAREST = 12  # distance of the first ring, which is clear of the largest mark
RING = 7  # from one ring to the next
RINGS = 24
TURNS = 16  # places on a ring


class Box(NamedTuple):
    """A rectangle in pixels: its left, top, right and bottom side."""

    x0: float
    y0: float
    x1: float
    y1: float

    def is_inside(self, frame: "Box") -> bool:
        """Whether no part of it is outside of `frame`."""
        across = self.x0 >= frame.x0 and self.x1 <= frame.x1
        return across and self.y0 >= frame.y0 and self.y1 <= frame.y1

    def holds(self, point: XY) -> bool:
        """Whether a point is inside it or on its border."""
        return self.x0 <= point[0] <= self.x1 and self.y0 <= point[1] <= self.y1


class Label(NamedTuple):
    """A text that belongs to a point of a chart."""

    text: str
    point: XY
    role: Role


def place_labels(labels: Sequence[Label], spots: Sequence[XY], frame: Box) -> list[Shape]:
    """Each label near its point, where it covers no other label and the fewest of `spots`.

    Labels are placed one after the other; those that are placed stay. A thin line leads to a label that is
    further away.

    Args:
        labels: in the order in which they are placed.
        spots: what should not be covered, in pixels: points, and points along lines (`points_along`).
        frame: what no label leaves, if that is possible.
    """
    taken: list[Box] = []
    obstacles = list(spots)
    shapes: list[Shape] = []
    for label in labels:
        lines = wrap_text(label.text, LONGEST, LINES)
        widest = max(text_width(line, SIZE) for line in lines)
        size = (widest, LINE * len(lines))
        others = [other.point for other in labels if other.point != label.point]
        place = _best_place(size, label.point, taken, np.array(obstacles), others, frame)
        taken.append(place)
        leader = _leader(label.point, place)
        if leader:
            shapes.append(Outline((label.point, leader[-1]), line="quiet", width=0.8))
            obstacles += leader
        middle = (place.x0 + place.x1) / 2
        for number, line in enumerate(lines, start=1):
            baseline = place.y0 + LINE * number - 3
            shapes.append(Words(middle, baseline, line, SIZE, label.role, "middle", bold=True))
    return shapes


def points_along(start: XY, end: XY) -> Iterator[XY]:
    """Points of a line, 6 pixels apart, without its end."""
    across, down = end[0] - start[0], end[1] - start[1]
    count = ceil(hypot(across, down) / LINE_STEP)
    for i in range(count):
        yield start[0] + across * i / count, start[1] + down * i / count


def _best_place(
    size: XY,
    point: XY,
    taken: Sequence[Box],
    obstacles_N2: NDArray[np.float64],
    others: Sequence[XY],
    frame: Box,
) -> Box:
    """The least bad of 24 x 16 places around the point; of equally bad ones the first, the nearest above.

    size: width and height of the label, in pixels.
    """
    places = []
    for ring in range(RINGS):
        for turn in range(TURNS):
            places.append(_beside(point, size, NEAREST + RING * ring, 2 * pi * turn / TURNS))
    inside = [place for place in places if place.is_inside(frame)]
    if not inside:
        return places[0]
    badness = [_badness(place, point, taken, obstacles_N2, others) for place in inside]
    return inside[badness.index(min(badness))]


def _beside(point: XY, size: XY, distance: float, angle: float) -> Box:
    """A box of `size` at a distance from the point; the angle is 0 above it and grows clockwise."""
    width, height = size
    x = point[0] + (distance + width / 2) * sin(angle)
    y = point[1] - (distance + height / 2) * cos(angle)
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _leader(point: XY, place: Box) -> list[XY]:
    """Points of the line from a point to the nearest point of its label; none where that is near."""
    x = min(max(point[0], place.x0), place.x1)
    y = min(max(point[1], place.y0), place.y1)
    if hypot(x - point[0], y - point[1]) <= NEAREST + 1:
        return []
    return [*points_along(point, (x, y)), (x, y)]


def _badness(
    place: Box, point: XY, taken: Sequence[Box], obstacles_N2: NDArray[np.float64], others: Sequence[XY]
) -> float:
    """How bad a place is for the label of a point.

    Worst is to stand on another label. Then follow: to stand on another label's point, a line through
    another label, a line past another label's point, covered obstacles, and distance.
    """
    leader = _leader(point, place)
    over = [_overlap(place, other) for other in taken].count(True)
    hides = [_hides(place, other) for other in others].count(True)
    through = past = 0
    for x, y in leader:
        for box in taken:
            through += box.holds((x, y))
        for other in others:
            past += hypot(x - other[0], y - other[1]) < 9
    after_start = obstacles_N2 > (place.x0 - 3, place.y0 - 3)
    before_end = obstacles_N2 < (place.x1 + 3, place.y1 + 3)
    covers = int((after_start & before_end).all(axis=1).sum())
    away = hypot((place.x0 + place.x1) / 2 - point[0], (place.y0 + place.y1) / 2 - point[1])
    # The weights keep this order; one overlap is worse than all the rest in a chart of usual size.
    return 1e6 * over + 400 * hides + 300 * through + 100 * past + 15 * covers + away


def _overlap(place: Box, other: Box) -> bool:
    """Whether two labels overlap, or are so near beside each other that they read as one."""
    across = place.x0 - 5 < other.x1 and other.x0 < place.x1 + 5
    return across and place.y0 < other.y1 and other.y0 < place.y1


def _hides(place: Box, point: XY) -> bool:
    """Whether a label covers the mark of a point, which is larger than the point."""
    across = place.x0 - 8 < point[0] < place.x1 + 8
    return across and place.y0 - 6 < point[1] < place.y1 + 6
