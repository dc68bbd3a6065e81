"""The selected subnets class by class, on test images: a table, and pictures of which are mixed up."""

from collections.abc import Mapping, Sequence

import numpy as np

from engine.plot.confusion import draw_confusion
from engine.statistics import Counts, balanced_accuracy, class_accuracies, overall_accuracy
from predictors.reporting.figures import Picture
from predictors.reporting.html import html_cell, html_table, small_print

MOST_ROWS = 20  # classes in the table of the page
MOST_PAIRS = 3  # mistakes that a caption names
# Classes in a picture, and pixels for their squares: so few that their names can be read on a phone.
DRAWN, ROOM = 10, 300.0


def class_pictures(confusions: Mapping[str, Counts], classes: Sequence[str]) -> dict[str, Picture]:
    """The confusion of each selected subnet, by the names of their files.

    Args:
        confusions: counts of test images (K, K) by budget, of `engine.compute.evaluation.confusion`.
        classes: names of the classes.
    """
    drawn = {}
    columns = _column_names(classes)
    for budget, confusion_KK in confusions.items():
        rows = []
        for name, counts_K in zip(classes, confusion_KK.tolist(), strict=True):
            rows.append({"true class": name} | dict(zip(columns, counts_K, strict=True)))
        title = f"Which class {budget} takes for which"
        drawing = draw_confusion(title, confusion_KK, classes, most=DRAWN, room=ROOM)
        caption = f"{_worst_pairs(confusion_KK, classes)} Darker: a larger share of the images of a class."
        if len(classes) > DRAWN:
            caption += f" All {len(classes)} classes are in confusion_{budget}.csv."
        drawn[f"confusion_{budget}"] = Picture(drawing, rows, caption)
    return drawn


def _column_names(classes: Sequence[str]) -> list[str]:
    """Different names for the columns: two classes of an .npz file may have the same name."""
    names = []
    for label, name in enumerate(classes):
        names.append(name if classes.count(name) == 1 else f"{name} ({label})")
    return names


def _worst_pairs(confusion_KK: Counts, classes: Sequence[str]) -> str:
    """The most frequent mistakes in a sentence."""
    mistakes_KK = confusion_KK - np.diag(np.diag(confusion_KK))
    images_K = confusion_KK.sum(1)
    worst = []
    for _ in range(MOST_PAIRS):
        # The largest again and again: to sort a table of classes times classes would take too much memory.
        i, j = divmod(int(mistakes_KK.argmax()), len(classes))
        if mistakes_KK[i, j]:
            worst.append(f"{classes[i]} for {classes[j]} ({mistakes_KK[i, j]} of {images_K[i]} images)")
        mistakes_KK[i, j] = 0
    if not worst:
        return "It takes no image for another class."
    return f"Most often it takes {', '.join(worst)}."


def class_table(confusions: Mapping[str, Counts], classes: Sequence[str]) -> list[str]:
    """The part of the page about classes, in HTML: the worst classes first, a column for each budget."""
    if not confusions:
        return []
    accuracies = {budget: class_accuracies(counts) for budget, counts in confusions.items()}
    images_K = next(iter(confusions.values())).sum(1)
    mean_K = np.mean(list(accuracies.values()), axis=0)
    # Classes without test images have no accuracy to sort by.
    order = [int(i) for i in np.lexsort((-images_K, mean_K)) if images_K[i]]
    rows = [
        _row("all images", int(images_K.sum()), [overall_accuracy(c) for c in confusions.values()]),
        _row("balanced", int(images_K.sum()), [balanced_accuracy(c) for c in confusions.values()]),
    ]
    for i in order[:MOST_ROWS]:
        rows.append(_row(classes[i], int(images_K[i]), [a[i] for a in accuracies.values()]))
    more = f" The {MOST_ROWS} worst of {len(order)} classes." if len(order) > MOST_ROWS else ""
    return [
        html_table(["class", "test images", *confusions], rows),
        small_print(
            "Balanced: the mean over the classes, however many images each has. Tuned subnets have their "
            f"tuned weights here. An accuracy on few images is uncertain.{more}"
        ),
    ]


def _row(name: str, images: int, accuracies: Sequence[float]) -> list[str]:
    cells = [html_cell(f"{100 * accuracy:.1f}%") for accuracy in accuracies]
    return [html_cell(name), html_cell(str(images)), *cells]
