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

from engine.run import atomic
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.spaces.genotype import Cell, Genotype

INK, QUIET = "#1b1f24", "#8a939d"
FILLS = {"conv": "#cfe3fb", "pool": "#d6efd8", "skip": "#fdeac2", "none": "#ffffff"}
OTHER_FILL = "#e9e2f6"
GRAY, SKY, BLUE, ORANGE = "#8c8c8c", "#56b4e9", "#0068a8", "#e69f00"
GREEN, PURPLE, RED, PINK = "#009e73", "#7b3294", "#d55e00", "#e377c2"
COLORS = {
    **{"none": GRAY, "max_pool_3x3": SKY, "avg_pool_3x3": BLUE, "skip_connect": ORANGE},
    **{"sep_conv_3x3": GREEN, "sep_conv_5x5": PURPLE, "dil_conv_3x3": RED, "dil_conv_5x5": PINK},
    **{
        "nor_conv_1x1": PURPLE,
        "nor_conv_3x3": GREEN,
        "tanh": SKY,
        "relu": GREEN,
        "sigmoid": ORANGE,
        "identity": PURPLE,
    },
}
COLUMN, ROW, INPUT_ROW, DROP, BOX, RADIUS = 1.12, 1.0, 0.55, 0.44, (0.98, 0.46), 0.17  # inches
PANEL, DPI = (2.1, 1.45), 150
RC: dict[Any, Any] = {"svg.hashsalt": "cell", "font.family": "DejaVu Sans", "font.size": 9}


def draw_genotype(genotype: Genotype, path: Path) -> list[Path]:
    """Write `path`.svg and `path`.png. The same genotype gives the same bytes."""
    figure = picture(genotype)
    return [_save(figure, path.with_name(path.name + suffix)) for suffix in (".svg", ".png")]


def picture(genotype: Genotype) -> Figure:
    """The cells of a genotype below each other."""
    space = find_space(genotype.space)
    sizes = [_size(space, cell) for cell in genotype.cells.values()]
    width, height = max(wide for wide, _ in sizes), sum(tall for _, tall in sizes)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        top = 0.0
        for (kind, cell), (_, tall) in zip(genotype.cells.items(), sizes, strict=True):
            axes.text(
                0.25,
                top + 0.32,
                kind if kind == "cell" else f"{kind} cell",
                fontsize=12,
                weight="bold",
                color=INK,
                va="center",
            )
            _draw_cell(axes, space, cell, top + 0.85)
            top += tall
    return figure


def _size(space: CellSpace, cell: Cell) -> tuple[float, float]:
    columns = sum(len(edges) for edges in cell.nodes) + 0.55 * len(cell.nodes)
    return 2.65 + COLUMN * columns, 1.25 + INPUT_ROW * (space.inputs - 1) + ROW * len(cell.nodes)


def _draw_cell(axes: Axes, space: CellSpace, cell: Cell, top: float) -> None:
    """Nodes from left to right; `end` grows as later nodes read a state."""
    states = range(space.inputs + len(cell.nodes))
    line = [
        top + INPUT_ROW * min(state, space.inputs - 1) + ROW * max(state - space.inputs + 1, 0)
        for state in states
    ]
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
        axes.plot([min(first, node), node], [line[target]] * 2, color=INK, lw=1.2, zorder=1)
        start.append(node)
        end.append(node)
        x += 0.55 * COLUMN
    bar = x - 0.5 * COLUMN
    for state in cell.output:
        end[state] = bar
        axes.add_patch(Circle((bar, line[state]), 0.045, color=INK, zorder=4))
    for state in states:
        axes.plot(
            [start[state], end[state]], [line[state]] * 2, color=INK, lw=1.2, zorder=1, solid_capstyle="round"
        )
        axes.add_patch(
            Circle((start[state], line[state]), RADIUS, facecolor=INK, edgecolor="white", zorder=5)
        )
        axes.text(
            start[state],
            line[state],
            str(state),
            color="white",
            ha="center",
            va="center",
            fontsize=8.5,
            weight="bold",
            zorder=6,
        )
    for state, name in enumerate(["$c_{k-2}$", "$c_{k-1}$"] if space.inputs == 2 else ["input"]):
        axes.text(0.7, line[state], name, color=INK, ha="right", va="center", fontsize=11)
    ends = [line[min(cell.output)], line[max(cell.output)]]
    axes.plot([bar, bar], ends, color=INK, lw=3, zorder=3, solid_capstyle="round")
    how = "" if len(cell.output) == 1 else "mean\n" if space.name == "recurrent" else "concatenate\n"
    axes.text(bar + 0.14, sum(ends) / 2, how + "output", color=INK, ha="left", va="center")


def _draw_operation(axes: Axes, name: str, x: float, source: float, target: float) -> None:
    """A wire from the line at `source` down to the line at `target`, through a box with the operation's
    name."""
    absent = name == "none"
    color, style = (QUIET, (0, (3, 2))) if absent else (INK, "-")
    wide, tall = BOX
    middle = target - DROP
    axes.plot([x, x], [source, middle], color=color, lw=1.2, ls=style, zorder=2)
    axes.add_patch(Circle((x, source), 0.045, color=color, zorder=4))
    arrow = {
        "arrowstyle": "-|>",
        "color": color,
        "lw": 1.2,
        "shrinkA": 0,
        "shrinkB": 0,
        "linestyle": style,
        "mutation_scale": 9,
    }
    axes.annotate("", (x, target), (x, middle + tall / 2), arrowprops=arrow, zorder=3)
    fill = next((fill for part, fill in FILLS.items() if part in name), OTHER_FILL)
    place = (x - wide / 2 + 0.05, middle - tall / 2 + 0.05)
    box = FancyBboxPatch(
        place,
        wide - 0.1,
        tall - 0.1,
        "round,pad=0.05",
        facecolor=fill,
        edgecolor=color,
        lw=1,
        ls=style,
        zorder=3,
    )
    axes.add_patch(box)
    axes.text(
        x,
        middle,
        label(name),
        color=color if absent else INK,
        ha="center",
        va="center",
        fontsize=8.5,
        zorder=4,
        linespacing=1.1,
    )


def label(operation: str) -> str:
    """sep_conv_3x3 on two lines, as it is read."""
    words = operation.split("_")
    kernels = [word.replace("x", "×") for word in words if word[0].isdecimal()]
    return "\n".join([" ".join(words[: -len(kernels)]), " ".join(kernels)] if kernels else words)


def alphas_over_time(history: Sequence[Mapping[str, Any]], space: CellSpace, path: Path) -> Path:
    """Write a PNG with one small plot for each edge: the weight of each of its operations by epoch.

    Args:
        history: for each epoch, the weights (E, O) of each kind of cell, as lists, arrays or tensors.
        space: what E and O mean.
        path: the file.
    """
    kinds = [kind for kind in space.cells if kind in history[0]]
    rows, columns = space.nodes, space.inputs + space.nodes - 1
    head, tall, wide = 0.6, rows * PANEL[1], columns * PANEL[0] + 0.55
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(wide, len(kinds) * (tall + head)), facecolor="white")
        parts = np.atleast_1d(np.array(figure.subfigures(len(kinds), 1), dtype=object))
        for part, kind in zip(parts, kinds, strict=True):
            weight_TEO = np.array([np.asarray(epoch[kind], dtype=float) for epoch in history])
            title = (
                f"{kind if kind == 'cell' else kind + ' cell'}: weights by epoch, and what is strongest at "
                "the end"
            )
            part.suptitle(title, x=0.35 / wide, ha="left", fontsize=10.5, weight="bold")
            grid = part.subplots(
                rows,
                columns,
                sharex=True,
                sharey=True,
                squeeze=False,
                gridspec_kw={"hspace": 0.35, "wspace": 0.12},
            )
            part.subplots_adjust(
                left=0.5 / wide,
                right=1 - 0.15 / wide,
                top=1 - head / (tall + head),
                bottom=0.3 / (tall + head),
            )
            _draw_weights(grid, space, kind, weight_TEO)
            handles = [Line2D([], [], color=COLORS.get(name, INK), lw=2.2) for name in space.operations]
            grid[0, -1].legend(
                handles, space.operations, loc="upper right", fontsize=8.5, frameon=False, borderaxespad=0
            )
        return _save(figure, path)


def _draw_weights(grid: Any, space: CellSpace, kind: str, weight_TEO: Any) -> None:
    """Panel (row, column) is the edge from state `column` to node `row`."""
    epochs = np.arange(len(weight_TEO))
    allowed_mask = space.allowed_mask(kind).numpy()
    for axes in grid.flat:
        axes.set_axis_off()
    for edge, (source, target) in enumerate(space.edges):
        axes = grid[target - space.inputs, source]
        axes.set_axis_on()
        offered_operations = np.flatnonzero(allowed_mask[edge])
        strongest = offered_operations[weight_TEO[-1, edge, offered_operations].argmax()]
        for operation in offered_operations:
            front = operation == strongest
            color, marker = COLORS.get(space.operations[operation], INK), "o" if len(epochs) == 1 else ""
            axes.plot(
                epochs,
                weight_TEO[:, edge, operation],
                color=color,
                lw=2.2 if front else 1,
                marker=marker,
                zorder=3 if front else 2,
            )
        axes.set_title(f"{source}→{target}  {space.operations[strongest]}", fontsize=8, pad=3)
        axes.grid(color="#e6e9ec", lw=0.6)
        axes.tick_params(
            labelsize=7, length=2, labelleft=source == 0, labelbottom=target == space.inputs + space.nodes - 1
        )
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    """As SVG or PNG by the name's end; no date, no version, the same identifiers each time."""
    kind = path.suffix[1:]
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(RC), atomic(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
    return path
