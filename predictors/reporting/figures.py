"""The pictures of a report, each with the table behind it and a sentence on how to read it."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.config import format_count
from engine.plot.canvas import Drawing, side_by_side
from engine.plot.chart import Axis, Point, Series, draw_chart, front_line
from engine.statistics import pareto_front, told_apart, wilson_interval
from ofa.space.arch import Arch
from predictors.accuracy.cross_validation import CrossValidated
from predictors.reporting.architecture import draw_architecture
from predictors.reporting.comparison import any_tuned
from predictors.reporting.findings import (
    Findings,
    KnownSubnet,
    SelectedRecord,
    SelectedSubnet,
    TestedSubnet,
    by_arch,
    short_names,
)
from predictors.search.constraints import format_cost

CostKey = Literal["macs", "latency_ms"]
MOST_WHISKERS = 80  # more would hide the dots
COST_FIELDS = ("macs", "params", "latency_ms")
SELECTED_FIELDS = (*COST_FIELDS, "predicted_accuracy", "val_accuracy", "explore", "pairs", "seed")


def _format_latency(ms: float) -> str:
    return format_cost("latency", ms)


AXES = {
    "macs": Axis("multiply-accumulates of one image (MACs)", format_count, log=True),
    "latency_ms": Axis("predicted latency of one image", _format_latency, log=True),
}
NAMES = {"macs": "MACs", "latency_ms": "latency"}
AS_FAR_AS_KNOWN = {
    "macs": "",
    "latency_ms": (
        " Shown are subnets of known latency: all with --latency-table, otherwise those for which "
        "predictors.select wrote it."
    ),
}


class Picture(NamedTuple):
    """A drawing, the rows of the table behind it, and what it shows."""

    drawing: Drawing
    rows: list[dict[str, Any]]
    caption: str


def pictures(found: Findings) -> dict[str, Picture]:
    """The pictures for which there is something to show, by the names of their files."""
    drawn = {"front": test_picture(found, "macs"), "validation": validation_picture(found, "macs")}
    # Latency is known with a table of a device, or if predictors.select had one.
    if any(known.latency_ms is not None for known in found.known):
        drawn["front_latency"] = test_picture(found, "latency_ms")
        drawn["validation_latency"] = validation_picture(found, "latency_ms")
    if found.judged:
        drawn["predictor"] = predictor_picture(found.judged)
    drawn["architectures"] = architectures_picture(found)
    return drawn


def architectures_picture(found: Findings) -> Picture:
    """A diagram of each selected architecture."""
    diagrams = []
    for arch, same in by_arch(found.selected).items():
        diagrams.append(draw_architecture(", ".join(s.name for s in same), found.space, arch))
    columns = min(2, len(diagrams))
    drawing = side_by_side("Chosen architectures", diagrams, columns)
    return Picture(drawing, [_selected_row(s) for s in found.selected], "")


def test_picture(found: Findings, cost: CostKey) -> Picture:
    """Selected and random subnets on test images."""
    images = found.images["test"]
    tested = [t for t in found.tested if getattr(t, cost) is not None]
    marks: dict[str, list[Point]] = {"selected": [], "random": [], "extreme": []}
    # By cost: the line through the selected ones goes from left to right.
    short = short_names(found.selected)
    for t in sorted(tested, key=attrgetter(cost, "test_accuracy")):
        labels = {"selected": short.get(t.budget, ""), "random": ""}
        marks[_look(t.kind)].append(_tested_point(t, cost, images, labels.get(t.kind, t.kind)))
    # From back to front: stars, which the report is about, are never hidden.
    looks = [
        Series("random of the same MACs", "disc", "random", 3.2, marks["random"]),
        Series(f"chosen, by {NAMES[cost]}", "line", "chosen", 1.2, marks["selected"]),
        Series("smallest and largest", "triangle", "extreme", 7, marks["extreme"]),
        Series("chosen", "star", "chosen", 9, marks["selected"]),
    ]
    title = f"Test accuracy against {NAMES[cost]}"
    drawing = draw_chart(title, AXES[cost], _accuracy_axis(f"top-1 accuracy on {images} test images"), looks)
    caption = (
        f"Accuracy on the {images} test images, which had no part in training or in choosing. Each star is a "
        "chosen subnet; the dots near it are random subnets of the same supernet whose MACs are within 5%: "
        "what a choice without a search would give. A star above its dots was worth the search. "
        "The bar on a star is a 90% interval (Wilson): where its accuracy on other images of the same kind "
        "may be. All subnets see the same images, so two of them differ more surely than two bars suggest."
    )
    if any_tuned(found.comparisons):
        caption += " All are with the supernet's weights, those that were tuned, too."
    caption += _about_labels(short) + AS_FAR_AS_KNOWN[cost]
    return Picture(drawing, [t._asdict() for t in tested], caption)


def validation_picture(found: Findings, cost: CostKey) -> Picture:
    """All that was measured on validation images, and the front of it."""
    images = found.images["val"]
    known = [k for k in found.known if getattr(k, cost) is not None]
    known.sort(key=attrgetter(cost))
    marks: dict[str, list[Point]] = {"selected": [], "candidate": [], "collected": [], "extreme": []}
    short, same = short_names(found.selected), by_arch(found.selected)
    for k in known:
        label = k.name
        if k.kind == "selected":
            label = ", ".join(short[s.name] for s in same[k.arch])
        marks[_look(k.kind)].append(_known_point(k, cost, images, label))
    costs = [float(getattr(k, cost)) for k in known]
    looks = [
        Series("collected", "disc", "known", 3, marks["collected"]),
        Series("measured by the search", "disc", "random", 3, marks["candidate"]),
        Series("front", "line", "ink", 1.3, _front_of(costs, known)),
        Series("smallest and largest", "triangle", "extreme", 7, marks["extreme"]),
        Series("chosen", "star", "chosen", 9, marks["selected"]),
    ]
    title = f"Validation accuracy against {NAMES[cost]}"
    accuracy = _accuracy_axis(f"top-1 accuracy on {images} validation images")
    drawing = draw_chart(title, AXES[cost], accuracy, looks)
    caption = (
        f"What the choice was made from: {len(known)} subnets measured on the {images} validation images. "
        f"The line is the front: the best accuracy measured at no higher {NAMES[cost]}. A chosen subnet may "
        "lie a little below it, since the best of many measurements was lucky too: the choice weighs each "
        "measurement by how uncertain it is. Bars are 90% intervals (Wilson). Expect less on test images."
    )
    caption += _about_labels(short) + AS_FAR_AS_KNOWN[cost]
    return Picture(drawing, [_known_row(k) for k in known], caption)


def _about_labels(short: Mapping[str, str]) -> str:
    """What the labels leave out of the names, if anything."""
    for name, label in short.items():
        if name != label:
            left_out = [word for word in name.split("-") if word not in label.split("-")]
            return f" All chosen subnets also keep {', '.join(left_out)}."
    return ""


def _look(kind: str) -> str:
    """The two ends of a space look alike; all other kinds have a look of their own."""
    return "extreme" if kind in ("smallest", "largest") else kind


def _front_of(costs: Sequence[float], known: Sequence[KnownSubnet]) -> list[Point]:
    # The same front as that of predictors.select --front, of one cost.
    accuracies = np.array([k.val_accuracy for k in known])
    front = pareto_front(accuracies, np.array(costs)[:, None])
    return front_line([(costs[i], known[i].val_accuracy) for i in front], max(costs))


def predictor_picture(judged: CrossValidated) -> Picture:
    """Predicted against measured accuracy."""
    rows = _judged_rows(judged)
    every = -(-len(rows) // MOST_WHISKERS)  # one dot in so many has a whisker
    inside: list[Point] = []
    outside: list[Point] = []
    for i, row in enumerate(rows):
        title = (
            f"{format_count(row['macs'])} MACs: measured {_percent(row['val_accuracy'])}, predicted "
            f"{_percent(row['predicted_accuracy'])} ({_percent(row['low'])} to {_percent(row['high'])})"
        )
        whisker = (row["low"], row["high"]) if i % every == 0 else None
        point = Point(row["val_accuracy"], row["predicted_accuracy"], whisker, title=title)
        (inside if row["inside"] else outside).append(point)
    least = min(judged.measured.min(), judged.predicted.min())
    most = max(judged.measured.max(), judged.predicted.max())
    diagonal = [Point(least, least), Point(most, most)]
    looks = [
        Series("predicted = measured", "dashes", "quiet", 1.2, diagonal),
        Series("measured inside the interval", "disc", "random", 3, inside),
        Series("outside", "disc", "chosen", 3, outside),
    ]
    measured = _accuracy_axis("measured on validation images")
    predicted = _accuracy_axis("predicted from other subnets")
    drawing = draw_chart("Predicted against measured accuracy", measured, predicted, looks)
    bars = "The bar" if every == 1 else f"The bar (drawn for one in {every})"
    caption = (
        f"Each dot is one of {len(rows)} collected subnets, predicted by a predictor that learned from "
        f"others only (5 folds). The nearer to the dashed line, the better. {bars} is the 90% interval of "
        "the prediction, as wide as the misses in the other folds say; "
        f"{judged.covered.mean():.0%} of the measurements are inside. Subnets that a search picks are better "
        "than collected ones, so their predictions reach further and can be worse; therefore measurements "
        "decide, not predictions."
    )
    return Picture(drawing, rows, caption)


def _judged_rows(judged: CrossValidated) -> list[dict[str, Any]]:
    rows = []
    for i, is_inside in enumerate(judged.covered):
        row = {
            "val_accuracy": float(judged.measured[i]),
            "predicted_accuracy": float(judged.predicted[i]),
            "low": float(judged.low[i]),
            "high": float(judged.high[i]),
            "macs": int(judged.macs[i]),
            "inside": bool(is_inside),
        }
        rows.append(row)
    return rows


def describe_limits(subnet: SelectedSubnet) -> str:
    """The limits as flags; an empty text if the file has none."""
    return " ".join(map(str, subnet.record.constraints))


def describe_half(record: SelectedRecord, images: int) -> str:
    """What half of the budget would give, in a sentence without its full stop; empty if no file says it.

    Args:
        record: what was selected.
        images: the validation images that the subnets were measured on.
    """
    half = record.half
    if half is None or half.expected_accuracy is None or record.expected_accuracy is None:
        return ""
    if half.macs == record.macs:
        return "It keeps half of its limits already"
    difference = record.expected_accuracy - half.expected_accuracy
    if not told_apart(difference, record.expected_std, half.expected_std):
        return (
            f"{images} validation images cannot tell it from a subnet within half of the budget, of "
            f"{format_count(half.macs)} MACs"
        )
    # Beside accuracies on test images the second figure would seem to be compared with those.
    half_accuracy, accuracy = _percent(half.expected_accuracy), _percent(record.expected_accuracy)
    return (
        f"Half of the budget would give {half_accuracy} instead of {accuracy} (both expected on validation "
        f"images) with {format_count(half.macs)} MACs"
    )


def describe_prediction(predicted: float | None, interval: tuple[float, float] | None) -> str:
    """`97.1% (96.0 to 98.2)`, or a dash."""
    if predicted is None:
        return "–"
    if not interval:
        return _percent(predicted)
    return f"{_percent(predicted)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _accuracy_axis(label: str) -> Axis:
    return Axis(label, _format_accuracy, most=1)


def _format_accuracy(value: float) -> str:
    return f"{100 * value:.6g}%"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _tested_point(t: TestedSubnet, cost: CostKey, images: int, label: str) -> Point:
    low, high = wilson_interval(t.test_accuracy, images)
    title = (
        f"{t.budget or t.kind} ({t.kind}): {format_count(t.macs)} MACs, test {_percent(t.test_accuracy)}, "
        f"90% interval {100 * low:.1f} to {100 * high:.1f}%"
    )
    interval = (low, high) if t.kind == "selected" else None
    return Point(getattr(t, cost), t.test_accuracy, interval, label, title)


def _known_point(k: KnownSubnet, cost: CostKey, images: int, label: str) -> Point:
    interval = wilson_interval(k.val_accuracy, images) if k.kind == "selected" else None
    title = f"{k.name or k.kind}: {format_count(k.macs)} MACs, validation {_percent(k.val_accuracy)}"
    return Point(getattr(k, cost), k.val_accuracy, interval, label, title)


def _known_row(k: KnownSubnet) -> dict[str, Any]:
    row = {name: getattr(k, name) for name in ("kind", "name", "macs", "latency_ms", "val_accuracy")}
    return row | _arch_row(k.arch)


def _selected_row(s: SelectedSubnet) -> dict[str, Any]:
    row: dict[str, Any] = {"budget": s.name, "limits": describe_limits(s)}
    for name in SELECTED_FIELDS:
        row[name] = getattr(s.record, name)
    row["predicted_low"], row["predicted_high"] = s.record.predicted_interval() or (None, None)
    return row | _arch_row(s.arch)


def _arch_row(arch: Arch) -> dict[str, Any]:
    """The fields of an architecture; lists are joined by dashes."""
    row = {}
    for name, value in arch.model_dump(mode="json").items():
        row[name] = "-".join(map(str, value)) if isinstance(value, list) else value
    return row
