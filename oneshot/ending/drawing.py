"""A cell as a wiring diagram, SVG and PNG, and the weights of all operations over a search, PNG.

Every state is a line that runs to the right from where it is made; an operation hangs from the line that it
reads and ends on the line of the node that sums it. Each has a column of its own, so no label can meet
another, whatever the cell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch

from engine.runs.writing import atomic
from oneshot.chains.drawing import chain_weights_over_time, draw_chain
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.space import ChainSpace
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.spaces.genotype import AnyGenotype, Cell, Genotype
from oneshot.spaces.search_space import SearchSpace

INK, QUIET = "#1b1f24", "#8a939d"
FILLS = {"conv": "#cfe3fb", "pool": "#d6efd8", "skip": "#fdeac2", "none": "#ffffff"}
OTHER_FILL = "#e9e2f6"
GRAY, SKY, BLUE, ORANGE = "#8c8c8c", "#56b4e9", "#0068a8", "#e69f00"
GREEN, PURPLE, RED, PINK = "#009e73", "#7b3294", "#d55e00", "#e377c2"
# Of lines over epochs: no two operations of one space have the same.
COLORS = {
    **{"none": GRAY, "max_pool_3x3": SKY, "avg_pool_3x3": BLUE, "skip_connect": ORANGE},
    **{"sep_conv_3x3": GREEN, "sep_conv_5x5": PURPLE, "dil_conv_3x3": RED, "dil_conv_5x5": PINK},
    **{"nor_conv_1x1": PURPLE, "nor_conv_3x3": GREEN, "noise": GRAY},
    **{"tanh": SKY, "relu": GREEN, "sigmoid": ORANGE, "identity": PURPLE},
}
# In inches, which are also the units of the axes of a diagram: text keeps its size whatever the cell's is.
COLUMN, ROW, INPUT_ROW, DROP, BOX, RADIUS = 1.12, 1.0, 0.55, 0.44, (0.98, 0.46), 0.17
PANEL, DPI = (2.1, 1.45), 150
LINE = 1.2  # width of wires, in points
# A fixed salt: the same figure has the same identifiers, so the file has the same bytes.
RC: dict[Any, Any] = {"svg.hashsalt": "cell", "font.family": "DejaVu Sans", "font.size": 9}


def draw_genotype(genotype: AnyGenotype, path: Path) -> list[Path]:
    """Write `path`.svg and `path`.png. The same genotype gives the same bytes."""
    if isinstance(genotype, ChainGenotype):
        return draw_chain(genotype, path)
    figure = picture(genotype)
    return [_save(figure, path.with_name(path.name + suffix)) for suffix in (".svg", ".png")]


def picture(genotype: Genotype) -> Figure:
    """The cells of a genotype below each other."""
    space = find_space(genotype.space)
    sizes = [_size(space, cell) for cell in genotype.cells.values()]
    width = max(cell_width for cell_width, _ in sizes)
    height = sum(cell_height for _, cell_height in sizes)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        # From top to bottom, so that heights below are distances from the top.
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        top = 0.0
        for (kind, cell), (_, cell_height) in zip(genotype.cells.items(), sizes, strict=True):
            _write(axes, 0.25, top + 0.32, _title(kind), size=12, weight="bold", ha="left")
            _draw_cell(axes, space, cell, top + 0.85)
            top += cell_height
    return figure


def _title(kind: str) -> str:
    return kind if kind == "cell" else f"{kind} cell"


def _write(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Write text whose vertical middle is at `y`."""
    axes.text(x, y, text, **{"fontsize": size, "color": INK, "va": "center", "ha": "center", **style})


def _size(space: CellSpace, cell: Cell) -> tuple[float, float]:
    """Width and height of a cell's diagram."""
    columns = sum(len(edges) for edges in cell.nodes) + 0.55 * len(cell.nodes)
    return 2.65 + COLUMN * columns, 1.25 + INPUT_ROW * (space.inputs - 1) + ROW * len(cell.nodes)


def _heights(space: CellSpace, cell: Cell, top: float) -> list[float]:
    """Where the line of each state runs: inputs close together, then a row for each node."""
    heights = []
    for state in range(space.inputs + len(cell.nodes)):
        inputs_above = min(state, space.inputs - 1)
        nodes_above = max(state - space.inputs + 1, 0)
        heights.append(top + INPUT_ROW * inputs_above + ROW * nodes_above)
    return heights


def _draw_cell(axes: Axes, space: CellSpace, cell: Cell, top: float) -> None:
    """Nodes from left to right; the end of a state's line moves as later nodes read it."""
    line = _heights(space, cell, top)
    start = [0.95] * space.inputs
    end = list(start)
    x = 1.3 + COLUMN / 2
    for target, edges in enumerate(cell.nodes, start=space.inputs):
        first = x
        for operation, source in edges:
            _draw_operation(axes, operation, x, line[source], line[target])
            end[source] = x
            x += COLUMN
        node = x - 0.45 * COLUMN
        axes.plot([min(first, node), node], [line[target]] * 2, color=INK, lw=LINE, zorder=1)
        start.append(node)
        end.append(node)
        x += 0.55 * COLUMN
    bar = x - 0.5 * COLUMN
    for state in cell.output:
        end[state] = bar
        axes.add_patch(Circle((bar, line[state]), 0.045, color=INK, zorder=4))
    for state, y in enumerate(line):
        _draw_state(axes, str(state), start[state], end[state], y)
    names = ["$c_{k-2}$", "$c_{k-1}$"] if space.inputs == 2 else ["input"]
    for name, y in zip(names, line, strict=False):
        _write(axes, 0.7, y, name, size=11, ha="right")
    _draw_output(axes, space, cell, bar, line)


def _draw_state(axes: Axes, number: str, start: float, end: float, y: float) -> None:
    """A state's line, and its number in a circle where the line begins."""
    axes.plot([start, end], [y, y], color=INK, lw=LINE, zorder=1, solid_capstyle="round")
    axes.add_patch(Circle((start, y), RADIUS, facecolor=INK, edgecolor="white", zorder=5))
    _write(axes, start, y, number, size=8.5, color="white", weight="bold", zorder=6)


def _draw_output(axes: Axes, space: CellSpace, cell: Cell, bar: float, line: list[float]) -> None:
    """A bar at the right that joins the states which the cell returns."""
    ends = [line[min(cell.output)], line[max(cell.output)]]
    axes.plot([bar, bar], ends, color=INK, lw=3, zorder=3, solid_capstyle="round")
    how = ""
    if len(cell.output) > 1:
        how = "mean\n" if space.name == "recurrent" else "concatenate\n"
    _write(axes, bar + 0.14, sum(ends) / 2, how + "output", size=9, ha="left")


def _draw_operation(axes: Axes, name: str, x: float, source: float, target: float) -> None:
    """A wire from the line at `source` down to the line at `target`, through a box with a name."""
    absent = name == "none"
    color, style = (QUIET, (0, (3, 2))) if absent else (INK, "-")
    width, height = BOX
    middle = target - DROP
    axes.plot([x, x], [source, middle], color=color, lw=LINE, ls=style, zorder=2)
    axes.add_patch(Circle((x, source), 0.045, color=color, zorder=4))
    arrow = {"arrowstyle": "-|>", "color": color, "lw": LINE, "linestyle": style, "mutation_scale": 9}
    arrow |= {"shrinkA": 0, "shrinkB": 0}  # it touches the box and the line
    axes.annotate("", (x, target), (x, middle + height / 2), arrowprops=arrow, zorder=3)
    # The kind of operation by a part of its name.
    fill = next((fill for part, fill in FILLS.items() if part in name), OTHER_FILL)
    corner = (x - width / 2 + 0.05, middle - height / 2 + 0.05)
    axes.add_patch(
        FancyBboxPatch(
            corner, width - 0.1, height - 0.1, "round,pad=0.05", facecolor=fill, edgecolor=color, lw=1,
            ls=style, zorder=3,
        )
    )  # fmt: skip
    label_color = color if absent else INK
    _write(axes, x, middle, label(name), size=8.5, color=label_color, zorder=4, linespacing=1.1)


def label(operation: str) -> str:
    """sep_conv_3x3 on two lines, as it is read."""
    words = operation.split("_")
    kernels = [word.replace("x", "×") for word in words if word[0].isdecimal()]
    if not kernels:
        return "\n".join(words)
    names = words[: -len(kernels)]
    return " ".join(names) + "\n" + " ".join(kernels)


def alphas_over_time(history: Sequence[Mapping[str, Any]], space: SearchSpace, path: Path) -> Path:
    """Write a PNG with one small plot for each edge: the weight of each of its operations by epoch.

    Args:
        history: for each epoch, the weights (E, O) of each kind of cell, as lists, arrays or tensors.
        space: what E and O mean.
        path: the file.
    """
    if isinstance(space, ChainSpace):
        return chain_weights_over_time(history, space, path)
    assert isinstance(space, CellSpace)
    return _save(weights_picture(history, space), path)


def weights_picture(history: Sequence[Mapping[str, Any]], space: CellSpace) -> Figure:
    """The picture of `alphas_over_time` for cells.

    The scale begins at 0 and reaches twice an equal share at least, so that lines that did not part look as
    if they had not.
    """
    kinds = [kind for kind in space.cells if kind in history[0]]
    rows, columns = space.nodes, space.inputs + space.nodes - 1
    head, height, width = 0.72, rows * PANEL[1], columns * PANEL[0] + 0.67
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, len(kinds) * (height + head)), facecolor="white")
        parts = np.atleast_1d(np.array(figure.subfigures(len(kinds), 1), dtype=object))
        for part, kind in zip(parts, kinds, strict=True):
            weight_TEO = np.array([np.asarray(epoch[kind], dtype=float) for epoch in history])
            last = weight_TEO[-1][space.allowed_mask(kind).numpy()]
            title = (
                f"{_title(kind)}: weights by epoch, and what is strongest at the end\n"
                f"where all lie between {last.min():.4f} and {last.max():.4f}"
            )
            part.suptitle(title, x=0.35 / width, ha="left", fontsize=10.5, weight="bold")
            gaps = {"hspace": 0.35, "wspace": 0.12}
            grid = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=gaps)
            above, below = head / (height + head), 0.42 / (height + head)
            part.subplots_adjust(left=0.62 / width, right=1 - 0.15 / width, top=1 - above, bottom=below)
            _draw_weights(grid, space, kind, weight_TEO)
            handles = [Line2D([], [], color=COLORS.get(name, INK), lw=2.2) for name in space.operations]
            # The panel at the top right has no edge, since the first node reads the fewest states.
            corner = {"loc": "upper right", "frameon": False, "borderaxespad": 0}
            grid[0, -1].legend(handles, space.operations, fontsize=8.5, **corner)
    return figure


def _draw_weights(grid: Any, space: CellSpace, kind: str, weight_TEO: Any) -> None:
    """Panel (row, column) is the edge from state `column` to node `row`."""
    allowed_EO = space.allowed_mask(kind).numpy()
    last_state = space.inputs + space.nodes - 1
    # With a weight for each edge (PC-DARTS) a share of an edge is a part of that.
    share_E = np.array([weight_TEO[-1, edge, allowed].mean() for edge, allowed in enumerate(allowed_EO)])
    top = max(1.05 * weight_TEO.max(), 2 * share_E.max())
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_ylim(0, top)
    for edge, (source, target) in enumerate(space.edges):
        axes = grid[target - space.inputs, source]
        axes.set_axis_on()
        offered = np.flatnonzero(allowed_EO[edge])
        strongest = offered[weight_TEO[-1, edge, offered].argmax()]
        for operation in offered:
            name, weights = space.operations[operation], weight_TEO[:, edge, operation]
            _draw_weight(axes, name, weights, front=operation == strongest)
        # What each would have if all were equal at the end.
        axes.axhline(share_E[edge], color=QUIET, lw=0.8, ls=(0, (3, 2)), zorder=1)
        if source == 0:
            axes.set_ylabel("weight", fontsize=7)
        if target == last_state:
            axes.set_xlabel("epoch", fontsize=7)
        axes.set_title(f"{source}→{target}  {space.operations[strongest]}", fontsize=8, pad=3)
        axes.grid(color="#e6e9ec", lw=0.6)
        axes.tick_params(labelsize=7, length=2, labelleft=source == 0, labelbottom=target == last_state)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        axes.spines[["top", "right"]].set_visible(False)


def _draw_weight(axes: Any, name: str, weight_T: Any, front: bool) -> None:
    """The line of one operation; a point where there is one epoch only."""
    width, order = (2.2, 3) if front else (1, 2)
    marker = "o" if len(weight_T) == 1 else ""
    epochs = np.arange(len(weight_T))
    axes.plot(epochs, weight_T, color=COLORS.get(name, INK), lw=width, marker=marker, zorder=order)


def _save(figure: Figure, path: Path) -> Path:
    """Save a figure as SVG or PNG, by the end of its name."""
    # Without date and version, so that the same figure has the same bytes.
    kind = path.suffix[1:]
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(RC), atomic(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
    return path
