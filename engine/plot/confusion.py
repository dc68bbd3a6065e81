"""Which classes a network takes for which, as a picture and as a table of numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plot.canvas import Drawing, Role, Shape, Words, box, text_width, wrap_text, write_png
from engine.runs.writing import atomic
from engine.statistics import Counts

# Pixels.
CELL, SMALLEST_CELL, WIDTH = 40.0, 14.0, 640.0
TEXT, SMALL = 11.5, 10.5
TOP, LINE = 44.0, 16.0  # above the squares; from one line of text above them to the next
TWO_LINES = 24.0  # the height of a row in which a name may have two lines
DRAWN = 40  # classes in a picture; more would be smaller than a letter
SHORT = 2  # characters of names that fit above columns
NAME, HALF_NAME = 30, 22  # characters of a name on one line, and of each line where it has two
# Shares of a class's images, from which on a cell has the shade. Mistakes of 1 in 20 are to be seen.
SHADES: tuple[tuple[float, Role], ...] = (
    (0.75, "shade4"),
    (0.4, "shade3"),
    (0.15, "shade2"),
    (0.001, "shade1"),
)


def draw_confusion(
    title: str, confusion_KK: Counts, classes: Sequence[str], most: int = DRAWN, room: float = WIDTH
) -> Drawing:
    """A square for each pair of classes: rows are true classes, columns what the network said.

    Darker squares hold a larger share of their row's images. Of many classes the picture has those with most
    mistakes.

    Args:
        title: of the drawing.
        confusion_KK: counts of images, as `engine.compute.evaluation.confusion` returns them.
        classes: names of the classes, in the order of the labels.
        most: how many classes are drawn at most.
        room: pixels for the squares of a row, however many they are.
    """
    shown = _worst_classes(confusion_KK, most)
    side = min(CELL, max(SMALLEST_CELL, room / len(shown)))
    # Columns have short names, such as digits, or else the number of their row: others would not fit.
    heads = [classes[i] for i in shown]
    names = [[name] for name in heads]
    if max(map(len, heads)) > SHORT:
        heads = [str(row) for row in range(1, len(shown) + 1)]
        names = [_name_lines(classes[i], head, side) for head, i in zip(heads, shown, strict=True)]
    margin = 16 + max(text_width(line, TEXT) for lines in names for line in lines)
    width = margin + len(shown) * side + 8
    notes = ["rows: true class; columns: what the network said"]
    if len(shown) < len(classes):
        notes.append(f"the {len(shown)} of {len(classes)} classes with most mistakes")
    top = TOP + LINE * (len(notes) - 1)
    shapes: list[Shape] = []
    for number, note in enumerate(notes):
        shapes.append(Words(8, 16 + LINE * number, note, TEXT, "quiet"))
        width = max(width, text_width(note, TEXT) + 16)
    images_K = confusion_KK.sum(1)
    for row, i in enumerate(shown):
        y = top + row * side
        shapes += _row_name(names[row], margin - 8, y + side / 2)
        shapes.append(Words(margin + (row + 0.5) * side, top - 6, heads[row], SMALL, "quiet", "middle"))
        for column, j in enumerate(shown):
            count = int(confusion_KK[i, j])
            hint = f"{classes[i]} taken for {classes[j]}: {count} of {images_K[i]}"
            x = margin + column * side
            shapes.append(box(x, y, side, side, _shade(count, int(images_K[i])), "grid", title=hint))
            if count and text_width(str(count), TEXT) < side:
                shapes.append(Words(x + side / 2, y + side / 2 + 4, str(count), TEXT, "ink", "middle"))
    return Drawing(title, width, top + len(shown) * side + 10, tuple(shapes))


def _name_lines(name: str, number: str, side: float) -> list[str]:
    """The name of a row with its number: on two lines if it is long and the row has room for them."""
    if len(name) > HALF_NAME and side >= TWO_LINES:
        lines = wrap_text(name, HALF_NAME, 2)
    else:
        lines = wrap_text(name, NAME, 1)
    return [*lines[:-1], f"{lines[-1]} · {number}"]


def _row_name(lines: Sequence[str], right: float, middle: float) -> list[Shape]:
    """The lines of a name, around the middle of their row."""
    first = middle + 4 - (TEXT + 1) * (len(lines) - 1) / 2
    words: list[Shape] = []
    for number, line in enumerate(lines):
        words.append(Words(right, first + (TEXT + 1) * number, line, TEXT, "ink", "end"))
    return words


def _worst_classes(confusion_KK: Counts, most: int) -> list[int]:
    """The classes that take part in most mistakes, in the order of the labels; all if they are few."""
    mistakes_KK = confusion_KK - np.diag(np.diag(confusion_KK))
    worst_first = np.argsort(-(mistakes_KK.sum(0) + mistakes_KK.sum(1)), kind="stable")
    return sorted(worst_first[:most].tolist())


def _shade(count: int, images: int) -> Role:
    for share, shade in SHADES:
        if count >= share * images > 0:
            return shade
    return "panel"


def write_confusion(path: Path, title: str, confusion_KK: Counts, classes: Sequence[str]) -> None:
    """Write `path`.png, the picture, and `path`.csv, all counts with a line for each true class."""
    write_png(draw_confusion(title, confusion_KK, classes), path.with_name(f"{path.name}.png"))
    table = path.with_name(f"{path.name}.csv")
    with atomic(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        # Two classes may have the same name in an .npz file; a dictionary of columns would lose one.
        writer.writerow(["true class", *classes])
        for name, counts_K in zip(classes, confusion_KK.tolist(), strict=True):
            writer.writerow([name, *counts_K])
