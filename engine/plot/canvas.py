"""Pictures as data: outlines, discs and words, drawn as SVG or as PNG.

Shapes have roles instead of colours. In SVG the colours follow the page, in PNG they are those of light
paper. One layout makes both, so they show the same. Lengths are pixels of a screen on which the picture is
not scaled; y grows downwards.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from engine.runs.writing import atomic

Shade = Literal["shade1", "shade2", "shade3", "shade4"]
Role = Literal["ink", "quiet", "grid", "paper", "panel", "known", "random", "chosen", "extreme"] | Shade
# Characters that XML and HTML do not take: control characters, and halves of surrogate pairs.
NOT_XML = r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
Anchor = Literal["start", "middle", "end"]
XY = tuple[float, float]
# On light and on dark paper. The contrast of texts is 4.5 at least, that of marks 3 (WCAG 2, level AA).
COLORS: dict[Role, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "quiet": ("#56606b", "#a6afb9"),
    "grid": ("#e1e5ea", "#343a42"),
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f7f9", "#1c2026"),
    "known": ("#808a95", "#6b7681"),
    "random": ("#2f74d0", "#6ea8f7"),
    "chosen": ("#cf3517", "#ff7d5f"),
    "extreme": ("#7547b3", "#b997ec"),
    "shade1": ("#d8ece8", "#1c3733"),
    "shade2": ("#a5d5cc", "#204942"),
    "shade3": ("#6dbbae", "#265e55"),
    "shade4": ("#46a394", "#2c756a"),
}
# Of a PNG, which has DPI / UNITS_PER_INCH = 2 dots for each pixel of a drawing.
UNITS_PER_INCH, DPI = 100, 200
TITLE = 30  # height of the line with the title of a drawing
TITLE_STEP, TITLE_LINES = 18, 4  # from one line of a long title to the next; the most lines
ALIGNMENT = {"start": "left", "middle": "center", "end": "right"}  # matplotlib's words for anchors


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
    """About how wide a line of text is, in pixels; the estimate is rather too wide than too narrow."""
    # The page takes the font of the reader's system, so nothing can be measured here.
    return 0.6 * size * len(text)


def shorten(text: str, most: int) -> str:
    """At most `most` characters of a text."""
    return text if len(text) <= most else text[: most - 1] + "…"


def wrap_text(text: str, most: int, lines: int) -> list[str]:
    """A text on several lines, so that a long name is not cut.

    Lines end after a space or a hyphen where the text has any, else within a word.

    Args:
        text: what is written.
        most: characters of a line.
        lines: how many lines there may be; what has no room ends in an ellipsis.
    """
    # Pieces keep the space or hyphen at their end: together they are the text.
    found = [""]
    for piece in re.findall(r"[^ -]*[ -]?", text):
        if len(found[-1]) + len(piece.rstrip()) > most and found[-1]:
            found.append("")
        rest = found.pop() + piece
        while len(rest.rstrip()) > most:
            found.append(rest[:most])
            rest = rest[most:]
        found.append(rest)
    if len(found) > lines:
        found[lines - 1 :] = [shorten("".join(found[lines - 1 :]), most)]
    return [line.rstrip() for line in found]


def side_by_side(title: str, drawings: Sequence[Drawing], columns: int) -> Drawing:
    """Drawings in rows of `columns`, each under its title."""
    width = max(d.width for d in drawings)
    longest = int(width / text_width("0", 14)) - 2
    titles = [wrap_text(drawing.title, longest, TITLE_LINES) for drawing in drawings]
    # All titles have the room of the longest, so that the drawings of a row stand side by side.
    top = TITLE + TITLE_STEP * (max(map(len, titles)) - 1)
    height = max(d.height for d in drawings) + top
    shapes: list[Shape] = []
    for i, drawing in enumerate(drawings):
        x, y = width * (i % columns), height * (i // columns)
        for number, line in enumerate(titles[i]):
            shapes.append(Words(x + 8, y + TITLE - 8 + TITLE_STEP * number, line, 14, bold=True))
        shapes += [_moved(shape, x, y + top) for shape in drawing.shapes]
    rows = -(-len(drawings) // columns)
    return Drawing(title, width * min(columns, len(drawings)), height * rows, tuple(shapes))


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    if isinstance(shape, Outline):
        points = [(x + dx, y + dy) for x, y in shape.points]
        return shape._replace(points=tuple(points))
    return shape._replace(x=shape.x + dx, y=shape.y + dy)


def safe(text: object) -> str:
    """Text as HTML and as XML: escaped, with control characters replaced, which neither may hold."""
    return escape(re.sub(NOT_XML, "\ufffd", str(text)))


def colors_css() -> str:
    """CSS that gives roles their colours: light, dark where the screen asks for it, and light in print."""
    light = dark = classes = ""
    for role, (on_light, on_dark) in COLORS.items():
        light += f"--{role}:{on_light};"
        dark += f"--{role}:{on_dark};"
        classes += f".f-{role}{{fill:var(--{role})}}.l-{role}{{stroke:var(--{role})}}"
    on_dark_screens = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f":root{{color-scheme:light dark;{light}}}{on_dark_screens}{classes}"


def to_svg(drawing: Drawing) -> str:
    """An <svg> element to stand inside a page that has `colors_css`."""
    size, label = f"{drawing.width:g} {drawing.height:g}", safe(drawing.title)
    body = "".join(_svg(shape) for shape in drawing.shapes)
    return f'<svg viewBox="0 0 {size}" role="img" aria-label="{label}">{body}</svg>'


def _svg(shape: Shape) -> str:
    if isinstance(shape, Words):
        look = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
        if shape.bold:
            look += ' font-weight="600"'
        return f'<text class="f-{shape.role}" {look}>{safe(shape.text)}</text>'
    hint = f"<title>{safe(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Disc):
        place = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
        return f'<circle class="f-{shape.fill}" {place}>{hint}</circle>'
    classes = []
    if shape.fill:
        classes.append(f"f-{shape.fill}")
    if shape.line:
        classes.append(f"l-{shape.line}")
    # fill="none" holds for outlines without a fill: a class overrides it.
    look = f'class="{" ".join(classes)}" fill="none" stroke-width="{shape.width:g}"'
    if shape.dashed:
        look += ' stroke-dasharray="4 3"'
    points = [f"{x:.1f} {y:.1f}" for x, y in shape.points]
    return f'<path {look} d="M{"L".join(points)}">{hint}</path>'


def write_png(drawing: Drawing, path: Path) -> None:
    """The drawing under its title, in the colours of light paper."""
    longest = int((drawing.width - 16) / text_width("0", 15))
    lines = wrap_text(drawing.title, max(longest, 1), TITLE_LINES)
    top = TITLE + TITLE_STEP * (len(lines) - 1)
    size = (drawing.width / UNITS_PER_INCH, (drawing.height + top) / UNITS_PER_INCH)
    # A figure of its own instead of pyplot's: nothing global is changed, and no window is opened.
    figure = Figure(figsize=size, facecolor=_color("paper"))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, -top))
    axes.set_axis_off()
    title = [Words(8, TITLE - 10 - top + TITLE_STEP * i, line, 15, bold=True) for i, line in enumerate(lines)]
    for order, shape in enumerate((*title, *drawing.shapes)):
        _draw(axes, shape, order)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _draw(axes: Axes, shape: Shape, order: int) -> None:
    points = 72 / UNITS_PER_INCH  # matplotlib's unit of fonts and lines
    if isinstance(shape, Words):
        words = axes.text(
            shape.x,
            shape.y,
            re.sub(r"[\x00-\x1f]", "\ufffd", shape.text),
            color=_color(shape.role),
            ha=ALIGNMENT[shape.anchor],
            va="baseline",
            weight="bold" if shape.bold else "normal",
            zorder=order,
        )
        # A dollar sign in a name is no formula.
        words.set(fontsize=shape.size * points, parse_math=False)
    elif isinstance(shape, Disc):
        center = (shape.x, shape.y)
        axes.add_patch(Circle(center, shape.radius, color=_color(shape.fill), linewidth=0, zorder=order))
    else:
        outline = Polygon(
            shape.points,
            closed=False,
            fc=_color(shape.fill),
            ec=_color(shape.line),
            lw=shape.width * points if shape.line else 0,
            ls="--" if shape.dashed else "-",
            zorder=order,
        )
        axes.add_patch(outline)


def _color(role: Role | None) -> str:
    """The colour of a role on light paper."""
    return COLORS[role][0] if role else "none"
