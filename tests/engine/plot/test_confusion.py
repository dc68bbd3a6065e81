"""The picture of a confusion has the counts, and stays small for many classes."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from shapes import sticking_out

from engine.plot.canvas import Outline, Words
from engine.plot.confusion import DRAWN, draw_confusion, write_confusion


def test_picture_and_table_hold_all_counts(tmp_path: Path) -> None:
    counts = np.array([[7, 1, 2], [0, 5, 0], [3, 0, 4]])
    write_confusion(tmp_path / "confusion" / "val", "val", counts, ["a", "b", "a"])
    with (tmp_path / "confusion" / "val.csv").open() as file:
        head, *rows = list(csv.reader(file))
    assert head == ["true class", "a", "b", "a"], "names need not differ"
    assert [[int(cell) for cell in row[1:]] for row in rows] == counts.tolist()
    with Image.open(tmp_path / "confusion" / "val.png") as picture:
        assert picture.width > 100
    shapes = draw_confusion("val", counts, ["a", "b", "a"]).shapes
    titles = [shape.title for shape in shapes if isinstance(shape, Outline)]
    assert "a taken for b: 1 of 10" in titles and len(titles) == 9
    assert "7" in [shape.text for shape in shapes if isinstance(shape, Words)]


def test_of_many_classes_those_with_most_mistakes_are_drawn() -> None:
    counts = np.diag(np.full(1000, 5))
    counts[990, 7] = 3
    drawing = draw_confusion("val", counts, [f"class{i}" for i in range(1000)])
    words = [shape.text for shape in drawing.shapes if isinstance(shape, Words)]
    assert any(text.startswith("class7 · ") for text in words)
    assert any(text.startswith("class990 · ") for text in words)
    assert any(f"the {DRAWN} of 1000" in text for text in words)
    assert drawing.width < 1000


def test_long_names_are_whole_and_a_small_picture_stays_small() -> None:
    """Letters are readable on a phone, where the picture is 370 pixels wide: 8 pixels high."""
    names = [f"Blue Staffordshire Terrier {i}" for i in range(100)]
    counts = np.diag(np.full(100, 5))
    counts[3, 90] = 2
    drawing = draw_confusion("test", counts, names, most=10, room=300)
    words = [shape for shape in drawing.shapes if isinstance(shape, Words)]
    text = " ".join(word.text for word in words)
    assert "Blue Staffordshire" in text and "Terrier 90 · " in text and "…" not in text
    assert "the 10 of 100 classes" in text
    assert drawing.width <= 520 and min(word.size for word in words) * 370 / drawing.width >= 7
    assert list(sticking_out(drawing)) == []
