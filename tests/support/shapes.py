"""How far the shapes of a drawing reach."""

from collections.abc import Iterator

from engine.plot.canvas import Disc, Drawing, Outline, Shape, text_width


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
