"""Which classes a network takes for which, as a picture and as a table of numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plot.canvas import Drawing, Role, Shape, Words, box, shorten, text_width, write_png
from engine.runs.writing import atomic
from engine.statistics import Counts

# Pixels.
CELL, SMALLEST_CELL, WIDTH = 40.0, 14.0, 640.0
TEXT = 11.5
DRAWN = 40  # classes in a picture; more would be smaller than a letter
NAME = 16  # characters of a name
# Shares of a class's images, from which on a cell has the shade. Mistakes of 1 in 20 are to be seen.
SHADES: tuple[tuple[float, Role], ...] = (
    (0.75, "shade4"),
    (0.4, "shade3"),
    (0.15, "shade2"),
    (0.001, "shade1"),
)


def draw_confusion(title: str, confusion_KK: Counts, classes: Sequence[str]) -> Drawing:
    """A square for each pair of classes: rows are true classes, columns what the network said.

    Darker squares hold a larger share of their row's images. Of many classes the picture has those with most
    mistakes.

    Args:
        title: of the drawing.
        confusion_KK: counts of images, as `engine.training.confusion` returns them.
        classes: names of the classes, in the order of the labels.
    """
    shown = _worst_classes(confusion_KK)
    # Columns have the number of their row: names would not fit above narrow columns.
    names = [f"{shorten(classes[i], NAME)} · {row}" for row, i in enumerate(shown, start=1)]
    side = min(CELL, max(SMALLEST_CELL, WIDTH / len(shown)))
    margin = max(text_width(name, TEXT) for name in names) + 16
    top = 44.0
    said = "rows: true class; columns: what the network said"
    if len(shown) < len(classes):
        said += f"; the {len(shown)} of {len(classes)} classes with most mistakes"
    shapes: list[Shape] = [Words(8, 16, said, TEXT, "quiet")]
    images_K = confusion_KK.sum(1)
    for row, i in enumerate(shown):
        y = top + row * side
        shapes.append(Words(margin - 8, y + side / 2 + 4, names[row], TEXT, "ink", "end"))
        shapes.append(Words(margin + (row + 0.5) * side, top - 6, str(row + 1), 9, "quiet", "middle"))
        for column, j in enumerate(shown):
            count = int(confusion_KK[i, j])
            hint = f"{classes[i]} taken for {classes[j]}: {count} of {images_K[i]}"
            x = margin + column * side
            shapes.append(box(x, y, side, side, _shade(count, int(images_K[i])), "grid", title=hint))
            if count and text_width(str(count), TEXT) < side:
                shapes.append(Words(x + side / 2, y + side / 2 + 4, str(count), TEXT, "ink", "middle"))
    width = max(margin + len(shown) * side + 8, text_width(said, TEXT) + 16)
    return Drawing(title, width, top + len(shown) * side + 10, tuple(shapes))


def _worst_classes(confusion_KK: Counts) -> list[int]:
    """The classes that take part in most mistakes, in the order of the labels; all if they are few."""
    mistakes_KK = confusion_KK - np.diag(np.diag(confusion_KK))
    worst_first = np.argsort(-(mistakes_KK.sum(0) + mistakes_KK.sum(1)), kind="stable")
    return sorted(worst_first[:DRAWN].tolist())


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
