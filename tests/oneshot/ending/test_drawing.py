"""Drawings of cells: nothing overlaps, whatever the cell, and the same cell gives the same bytes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from oneshot.ending.drawing import (
    BOX,
    COLORS,
    alphas_over_time,
    draw_genotype,
    label,
    picture,
    weights_picture,
)
from oneshot.nasbench201.codes import find_cell
from oneshot.spaces.cells import SPACES, CellSpace, find_space
from oneshot.spaces.genotype import Cell, Genotype


def largest(name: str) -> Genotype:
    """Every edge of a space, with its longest operation names; five nodes and few of them returned in the
    DARTS space."""
    space = find_space(name)
    nodes = space.nodes + (name == "darts")
    names = sorted(space.known, key=len)[-3:]
    edges = tuple(
        tuple((names[source % 3], source) for source in range(space.inputs + node)) for node in range(nodes)
    )
    output = (
        (2, 5, 6)
        if name == "darts"
        else tuple(range(space.inputs, space.inputs + nodes))
        if name == "recurrent"
        else (nodes,)
    )
    return Genotype(space=name, cells={kind: Cell(nodes=edges, output=output) for kind in space.cells})


@pytest.mark.parametrize("name", ["darts", "nasbench201", "recurrent"])
def test_no_label_meets_another_and_none_leaves_its_box(name: str) -> None:
    figure = picture(largest(name))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in figure.findobj(Text) if text.get_text()}
    assert len(boxes) > 6
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
    wide, tall = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= tall for box in boxes.values())
    operations = {label(operation) for operation in find_space(name).known}
    inside = [box for text, box in boxes.items() if text.get_text() in operations]
    assert inside and all(
        box.width < BOX[0] * figure.dpi and box.height < BOX[1] * figure.dpi for box in inside
    )


def test_a_cell_becomes_two_files_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in draw_genotype(find_cell("7"), tmp_path / "cell")]
    again = [path.read_bytes() for path in draw_genotype(find_cell("7"), tmp_path / "cell.of.7")]
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cell.of.7.png",
        "cell.of.7.svg",
        "cell.png",
        "cell.svg",
    ]
    assert first[0].startswith(b"<?xml") and b"<dc:date>" not in first[0]
    assert first[1].startswith(b"\x89PNG")
    assert [path.read_bytes() for path in draw_genotype(find_cell("8"), tmp_path / "cell")] != first


def test_a_node_without_edges_is_drawn(tmp_path: Path) -> None:
    cell = Cell(nodes=((("skip_connect", 0),), (), (("nor_conv_3x3", 1),)), output=(3,))
    assert len(draw_genotype(Genotype(space="nasbench201", cells={"cell": cell}), tmp_path / "sparse")) == 2


def test_operations_are_written_as_they_are_read() -> None:
    assert [label(name) for name in ("max_pool_3x3", "conv_7x1_1x7", "skip_connect", "tanh")] == [
        "max pool\n3×3",
        "conv\n7×1 1×7",
        "skip\nconnect",
        "tanh",
    ]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_operations_that_compete_have_colours_of_their_own(space: CellSpace) -> None:
    colors = [COLORS[name] for name in space.operations]
    assert len(set(colors)) == len(colors)


def test_weights_over_time_show_what_grew(tmp_path: Path) -> None:
    """In a space of one edge, so that the picture can be searched for the colour of the winner."""
    space = CellSpace("nasbench201", ("cell",), 1, 1, ("skip_connect", "nor_conv_3x3"), None)
    rising = np.linspace(0.5, 0.9, 20)
    history = [{"cell": [[1 - weight, weight]]} for weight in rising]
    pixels = imread(alphas_over_time(history, space, tmp_path / "alphas.png"))[..., :3]
    hexes = [COLORS["skip_connect"], COLORS["nor_conv_3x3"]]
    found = [
        np.argwhere(np.abs(pixels - [int(h[i : i + 2], 16) / 255 for i in (1, 3, 5)]).max(-1) < 0.02)
        for h in hexes
    ]
    assert all(len(places) > 100 for places in found)
    half = pixels.shape[1] // 3
    rows = [places[places[:, 1] > half][:, 0].mean() for places in found]
    assert rows[1] < rows[0]  # the winner is higher up


def test_the_scale_of_weights_is_honest() -> None:
    """After two epochs all weights lie between 0.1243 and 0.1257: the lines must not look apart."""
    space = find_space("darts")
    last = np.linspace(0.1243, 0.1257, 14 * 8).reshape(14, 8)
    history = [dict.fromkeys(space.cells, np.full((14, 8), 0.125)), dict.fromkeys(space.cells, last)]
    figure = weights_picture(history, space)
    panels = [axes for part in figure.subfigs for axes in part.axes if axes.lines]
    assert len(panels) == 28
    for axes in panels:
        assert axes.get_ylim() == pytest.approx((0, 0.25), abs=2e-3)
    assert {axes.get_xlabel() for axes in panels} == {"", "epoch"}
    assert {axes.get_ylabel() for axes in panels} == {"", "weight"}
    for part in figure.subfigs:
        assert "between 0.1243 and 0.1257" in part.get_suptitle()
    # What has parted is shown whole.
    history[1] = dict.fromkeys(space.cells, last + np.eye(14, 8))
    assert weights_picture(history, space).subfigs[0].axes[0].get_ylim()[1] > 1.1


@pytest.mark.slow
def test_weights_of_one_epoch_and_of_every_space(tmp_path: Path) -> None:
    for name in ("darts_s1", "nasbench201"):
        space = find_space(name)
        history = [{kind: np.full((len(space.edges), len(space.operations)), 0.5) for kind in space.cells}]
        assert alphas_over_time(history, space, tmp_path / f"{name}.png").stat().st_size > 10_000
