"""A chain as a picture, and the weights of the operations of its layers over a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engine.plot.canvas import Drawing, Role, Shape, Words, box, colors_css, to_svg, write_png
from engine.runs.writing import atomic
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.operation import SKIP, parse_operation
from oneshot.chains.space import CHAIN, ChainSpace

# Pixels of the picture of a chain.
LABEL, ROW, BOX, GAP, HEIGHT = 96.0, 44.0, 74.0, 6.0, 32.0
SHADES: tuple[Role, ...] = ("shade1", "shade2", "shade3", "shade4")
PANELS = 4  # in a row of the picture of weights
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}">{inside}</svg>'


def draw_chain(genotype: ChainGenotype, path: Path) -> list[Path]:
    """Write `path`.svg and `path`.png: a row of boxes for each stage, darker ones for larger kernels."""
    drawing = chain_picture(genotype)
    svg, png = path.with_name(path.name + ".svg"), path.with_name(path.name + ".png")
    with atomic(svg) as temporary:
        inside = f"<style>{colors_css()}</style>{to_svg(drawing)}"
        whole = SVG.format(width=drawing.width, height=drawing.height, inside=inside)
        temporary.write_text(whole, encoding="utf-8")
    write_png(drawing, png)
    return [svg, png]


def chain_picture(genotype: ChainGenotype) -> Drawing:
    """The chain from its stem above to its head below."""
    space, shapes, number = genotype.space, list[Shape](), 0
    stages = [stage.layers for stage in space.stages]
    for row, count in enumerate(stages):
        y = 4 + ROW * row
        shapes.append(Words(8, y + HEIGHT / 2 + 5, f"{space.stages[row].width} channels"))
        for place in range(count):
            shapes += _layer(LABEL + (BOX + GAP) * place, y, genotype.layers[number])
            number += 1
    width = LABEL + (BOX + GAP) * max(stages) + 8
    return Drawing(f"chain of space {space.name}", width, 8 + ROW * len(stages), tuple(shapes))


def _layer(x: float, y: float, name: str) -> list[Shape]:
    """The box of a layer, dashed where it is skipped."""
    operation = parse_operation(name)
    quiet: Role = "quiet"
    fill: Role | None
    text, fill, line = SKIP, None, quiet
    if operation is not None:
        text = f"{operation.kernel}×{operation.kernel} e{operation.expand}"
        # Kernels 3, 5, 7 and larger ones.
        fill, line = SHADES[min(operation.kernel // 2, len(SHADES)) - 1], "ink"
        if operation.groups > 1:
            text += f" g{operation.groups}"
    outline = box(x, y, BOX, HEIGHT, fill, line, dashed=operation is None, title=name)
    return [outline, Words(x + BOX / 2, y + HEIGHT / 2 + 4, text, 11, anchor="middle")]


def chain_weights_over_time(history: Sequence[Mapping[str, Any]], space: ChainSpace, path: Path) -> Path:
    """Write a PNG with one small plot for each searched layer: the weight of each operation by epoch.

    Args:
        history: for each epoch, the weights (E, O) of the kind `chain`.
        space: what E and O mean.
        path: the file.
    """
    weight_TEO = np.array([np.asarray(epoch[CHAIN], dtype=float) for epoch in history])
    allowed_EO = space.allowed_mask(CHAIN).numpy()
    rows = -(-space.nodes // PANELS)
    figure = Figure(figsize=(2.4 * PANELS + 1.2, 1.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, PANELS, sharex=True, sharey=True, squeeze=False)
    marker = "o" if len(weight_TEO) == 1 else ""
    # From 0 to twice an equal share at least: lines that did not part look as if they had not.
    share = max(1 / allowed_EO[edge].sum() for edge in range(space.nodes))
    grid[0, 0].set_ylim(0, max(1.05 * weight_TEO.max(), 2 * share))
    for edge, axes in enumerate(grid.flat):
        if edge >= space.nodes:
            axes.set_axis_off()
            continue
        strongest = int(weight_TEO[-1, edge].argmax())
        for column in np.flatnonzero(allowed_EO[edge]).tolist():
            width = 2.2 if column == strongest else 1.0
            axes.plot(weight_TEO[:, edge, column], color=f"C{column}", lw=width, marker=marker)
        axes.set_title(f"layer {space.searched[edge] + 1}: {space.operations[strongest]}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("weight", fontsize=9)
    for column, name in enumerate(space.operations):
        grid[0, 0].plot([], [], color=f"C{column}", label=name)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return path
