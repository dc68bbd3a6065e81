"""Pictures as data: outlines, discs and words with roles instead of colours; drawn as SVG, whose colours
follow the page, or as PNG.

One layout makes both, so they show the same. Lengths are pixels of a screen on which the picture is not
scaled; y grows downwards.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from engine.run import atomic

Role = Literal[
    "ink",
    "quiet",
    "grid",
    "paper",
    "panel",
    "known",
    "random",
    "chosen",
    "extreme",
    "shade1",
    "shade2",
    "shade3",
    "shade4",
]
Anchor = Literal["start", "middle", "end"]
XY = tuple[float, float]
COLORS: dict[Role, tuple[str, str]] = {  # on light and on dark paper
    "ink": ("#1b1f24", "#e8eaed"),
    "quiet": ("#56606b", "#a6afb9"),
    "grid": ("#e1e5ea", "#343a42"),
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f7f9", "#1c2026"),
    "known": ("#aab3bd", "#65707b"),
    "random": ("#2f74d0", "#6ea8f7"),
    "chosen": ("#cf3517", "#ff7d5f"),
    "extreme": ("#7547b3", "#b997ec"),
    "shade1": ("#d8ece8", "#1e433e"),
    "shade2": ("#a5d5cc", "#255c54"),
    "shade3": ("#6dbbae", "#2c756a"),
    "shade4": ("#46a394", "#338c7f"),
}
UNITS_PER_INCH, DPI, TITLE = 100, 200, 30
_ANCHOR = {"start": "left", "middle": "center", "end": "right"}


class Outline(NamedTuple):
    """Straight lines through points, filled where `fill` is a role."""

    points: tuple[XY, ...]
    fill: Role | None = None
    line: Role | None = None
    width: float = 1
    dashed: bool = False
    title: str = ""


class Disc(NamedTuple):
    """A filled circle."""

    x: float
    y: float
    radius: float
    fill: Role
    title: str = ""


class Words(NamedTuple):
    """One line of text; y is its baseline."""

    x: float
    y: float
    text: str
    size: float = 13
    role: Role = "ink"
    anchor: Anchor = "start"
    bold: bool = False


Shape = Outline | Disc | Words


class Drawing(NamedTuple):
    """Shapes on paper of a size, later ones above earlier ones."""

    title: str
    width: float
    height: float
    shapes: tuple[Shape, ...]


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    fill: Role | None = None,
    line: Role | None = None,
    dashed: bool = False,
    title: str = "",
) -> Outline:
    """A rectangle by its upper left corner."""
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y))
    return Outline(corners, fill, line, 1, dashed, title)


def text_width(text: str, size: float) -> float:
    """About how wide a line of text is, in fonts that are not known here: rather more than less."""
    return 0.6 * size * len(text)


def shorten(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def side_by_side(title: str, drawings: Sequence[Drawing], columns: int) -> Drawing:
    """Drawings in rows of so many, each under its title."""
    width, height = max(d.width for d in drawings), max(d.height for d in drawings) + TITLE
    shapes: list[Shape] = []
    for i, drawing in enumerate(drawings):
        x, y = width * (i % columns), height * (i // columns)
        shapes.append(
            Words(
                x + 8,
                y + TITLE - 8,
                shorten(drawing.title, int(width / text_width("0", 14)) - 2),
                14,
                bold=True,
            )
        )
        shapes += [_moved(shape, x, y + TITLE) for shape in drawing.shapes]
    rows = -(-len(drawings) // columns)
    return Drawing(title, width * min(columns, len(drawings)), height * rows, tuple(shapes))


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    if isinstance(shape, Outline):
        return shape._replace(points=tuple((x + dx, y + dy) for x, y in shape.points))
    return shape._replace(x=shape.x + dx, y=shape.y + dy)


def safe(text: object) -> str:
    """Text as HTML and as XML: escaped, and control characters, which neither may hold, replaced."""
    return escape(
        re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))
    )


def colors_css() -> str:
    """CSS that gives roles their colours: light, dark where the screen asks for it, and light in print."""
    light, dark = ("".join(f"--{role}:{pair[i]};" for role, pair in COLORS.items()) for i in (0, 1))
    classes = "".join(f".f-{role}{{fill:var(--{role})}}.l-{role}{{stroke:var(--{role})}}" for role in COLORS)
    return (
        f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-"
        f"scheme:dark){{:root{{{dark}}}}}{classes}"
    )


def to_svg(drawing: Drawing) -> str:
    """An <svg> element to stand inside a page that has `colors_css`."""
    body = "".join(_svg(shape) for shape in drawing.shapes)
    return (
        f'<svg viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img" aria-'
        f'label="{safe(drawing.title)}">{body}</svg>'
    )


def _svg(shape: Shape) -> str:
    if isinstance(shape, Words):
        bold = ' font-weight="600"' if shape.bold else ""
        place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
        return f'<text class="f-{shape.role}" {place}{bold}>{safe(shape.text)}</text>'
    hint = f"<title>{safe(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Disc):
        return (
            f'<circle class="f-{shape.fill}" cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}">'
            f"{hint}</circle>"
        )
    roles = " ".join([f"f-{shape.fill}"] * bool(shape.fill) + [f"l-{shape.line}"] * bool(shape.line))
    dash = ' stroke-dasharray="4 3"' if shape.dashed else ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shape.points)
    return f'<path class="{roles}" fill="none" stroke-width="{shape.width:g}"{dash} d="{path}">{hint}</path>'


def write_png(drawing: Drawing, path: Path) -> None:
    """The drawing under its title, in the colours of light paper."""
    points = 72 / UNITS_PER_INCH
    figure = Figure(
        figsize=(drawing.width / UNITS_PER_INCH, (drawing.height + TITLE) / UNITS_PER_INCH),
        facecolor=COLORS["paper"][0],
    )
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, -TITLE))
    axes.set_axis_off()
    for order, shape in enumerate(_with_title(drawing)):
        if isinstance(shape, Words):
            color, anchor, weight = (
                COLORS[shape.role][0],
                _ANCHOR[shape.anchor],
                "bold" if shape.bold else "normal",
            )
            text = re.sub(r"[\x00-\x1f]", "\ufffd", shape.text)
            place = axes.text(
                shape.x, shape.y, text, color=color, ha=anchor, va="baseline", weight=weight, zorder=order
            )
            place.set(fontsize=shape.size * points, parse_math=False)
        elif isinstance(shape, Disc):
            axes.add_patch(
                Circle(
                    (shape.x, shape.y), shape.radius, color=COLORS[shape.fill][0], linewidth=0, zorder=order
                )
            )
        else:
            face, edge = (COLORS[role][0] if role else "none" for role in (shape.fill, shape.line))
            width, style = shape.width * points if shape.line else 0, "--" if shape.dashed else "-"
            axes.add_patch(
                Polygon(shape.points, closed=False, fc=face, ec=edge, lw=width, ls=style, zorder=order)
            )
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _with_title(drawing: Drawing) -> Iterable[Shape]:
    return (Words(8, -10, drawing.title, 15, bold=True), *drawing.shapes)
