"""The pictures of a report, each with the table behind it and a sentence on how to read it."""

from typing import Any, Literal, NamedTuple

from engine.config import format_count
from engine.plot.canvas import Drawing, side_by_side
from engine.plot.chart import Axis, Point, Series, draw_chart, steps
from ofa.space.arch import Arch
from predictors.accuracy.cross_validation import HeldOut
from predictors.reporting.architecture import draw_architecture
from predictors.reporting.findings import Chosen, Findings, Known, Tested, by_arch, front_of, wilson
from predictors.search.constraints import format_cost

Cost = Literal["macs", "latency_ms"]
MOST_WHISKERS = 80
AXES = {
    "macs": Axis("multiply-accumulates of one image (MACs)", format_count, log=True),
    "latency_ms": Axis("predicted latency of one image", lambda ms: format_cost("latency", ms), log=True),
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
    """A drawing, its numbers, and what it shows."""

    drawing: Drawing
    rows: list[dict[str, Any]]
    caption: str


def pictures(found: Findings) -> dict[str, Picture]:
    """By the name of their files: those for which there is something to show."""
    drawn = {"front": test_picture(found, "macs"), "validation": validation_picture(found, "macs")}
    if any(known.latency_ms is not None for known in found.known):
        drawn |= {
            "front_latency": test_picture(found, "latency_ms"),
            "validation_latency": validation_picture(found, "latency_ms"),
        }
    if found.judged:
        drawn["predictor"] = predictor_picture(found.judged)
    groups = by_arch(found.chosen)
    diagrams = [
        draw_architecture(", ".join(c.name for c in same), found.space, arch) for arch, same in groups.items()
    ]
    rows = [_chosen_row(c) for c in found.chosen]
    return drawn | {
        "architectures": Picture(
            side_by_side("Chosen architectures", diagrams, 1 if len(diagrams) == 1 else 2), rows, ""
        )
    }


def test_picture(found: Findings, cost: Cost) -> Picture:
    """Chosen and random subnets on test images."""
    images = found.images["test"]
    tested = [t for t in found.tested if getattr(t, cost) is not None]

    def points(*kinds: str) -> list[Point]:
        return [
            _tested_point(t, cost, images)
            for t in sorted(tested, key=lambda t: (getattr(t, cost), t.test_accuracy))
            if t.kind in kinds
        ]

    chosen = points("selected")
    looks = [
        Series("random of the same MACs", "disc", "random", 3.2, points("random")),
        Series(f"chosen, by {NAMES[cost]}", "line", "chosen", 1.2, chosen),
        Series("smallest and largest", "triangle", "extreme", 7, points("smallest", "largest")),
        Series("chosen", "star", "chosen", 9, chosen),
    ]
    title = f"Test accuracy against {NAMES[cost]}"
    drawing = draw_chart(title, AXES[cost], _accuracy(f"top-1 accuracy on {images} test images"), looks)
    randoms = max(c.random_count for c in found.comparisons)
    caption = (
        f"Accuracy on the {images} test images, which had no part in training or in choosing. Each star is a "
        "chosen subnet; the dots near "
        f"it are {randoms} random subnets of the same supernet and about the same MACs: what a choice "
        "without a search would give. A star "
        "above its dots was worth the search. The bar on a star is a 90% interval (Wilson): where its "
        "accuracy on other images of the "
        "same kind may be. All subnets see the same images, so two of them differ more surely than two bars "
        "suggest."
    )
    return Picture(drawing, [t._asdict() for t in tested], caption + AS_FAR_AS_KNOWN[cost])


def validation_picture(found: Findings, cost: Cost) -> Picture:
    """All that was measured on validation images, and the front of it."""
    images = found.images["val"]
    known = sorted(
        (k for k in found.known if getattr(k, cost) is not None), key=lambda k: float(getattr(k, cost))
    )
    values = [float(getattr(k, cost)) for k in known]
    front = front_of([(value, k.val_accuracy) for value, k in zip(values, known, strict=True)])

    def points(*kinds: str) -> list[Point]:
        return [_known_point(k, cost, images) for k in known if k.kind in kinds]

    looks = [
        Series("collected", "disc", "known", 3, points("collected")),
        Series("measured by the search", "disc", "random", 3, points("candidate")),
        Series("front", "line", "ink", 1.3, steps(front, max(values))),
        Series("smallest and largest", "triangle", "extreme", 7, points("smallest", "largest")),
        Series("chosen", "star", "chosen", 9, points("selected")),
    ]
    title = f"Validation accuracy against {NAMES[cost]}"
    drawing = draw_chart(title, AXES[cost], _accuracy(f"top-1 accuracy on {images} validation images"), looks)
    caption = (
        f"What the choice was made from: {len(known)} subnets measured on the {images} validation images. "
        "The line is the front: the best "
        f"accuracy measured at no higher {NAMES[cost]}. A chosen subnet may lie a little below it: of all "
        "subnets within one standard "
        "error of the best under its limits, the cheapest is taken. Bars are 90% intervals (Wilson). The "
        "best of many measurements was "
        "lucky, too, so expect less on test images."
    )
    return Picture(drawing, [_known_row(k) for k in known], caption + AS_FAR_AS_KNOWN[cost])


def predictor_picture(judged: HeldOut) -> Picture:
    """Predicted against measured accuracy."""
    names = ("val_accuracy", "predicted_accuracy", "low", "high", "macs", "inside")
    columns = [values.tolist() for values in (*judged, judged.covered)]
    rows: list[dict[str, Any]] = [
        dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)
    ]
    every = -(-len(rows) // MOST_WHISKERS)
    ends = [
        min(judged.measured.min(), judged.predicted.min()),
        max(judged.measured.max(), judged.predicted.max()),
    ]
    points: dict[bool, list[Point]] = {True: [], False: []}
    for i, row in enumerate(rows):
        said = (
            f"predicted {_percent(row['predicted_accuracy'])} ({_percent(row['low'])} to "
            f"{_percent(row['high'])})"
        )
        whisker = (row["low"], row["high"]) if i % every == 0 else None
        title = f"{format_count(row['macs'])} MACs: measured {_percent(row['val_accuracy'])}, {said}"
        points[row["inside"]].append(
            Point(row["val_accuracy"], row["predicted_accuracy"], whisker, title=title)
        )
    looks = [
        Series("predicted = measured", "dashes", "quiet", 1.2, [Point(end, end) for end in ends]),
        Series("measured inside the interval", "disc", "random", 3, points[True]),
        Series("outside", "disc", "chosen", 3, points[False]),
    ]
    measured = _accuracy("measured on validation images")
    drawing = draw_chart(
        "Predicted against measured accuracy", measured, _accuracy("predicted from other subnets"), looks
    )
    bars = "The bar" if every == 1 else f"The bar (drawn for one in {every})"
    caption = (
        f"Each dot is one of {len(rows)} collected subnets, predicted by a predictor that learned from "
        "others only (5 folds). The nearer "
        f"to the dashed line, the better. {bars} is the 90% interval of the prediction, as wide as the "
        "misses in the other folds say; "
        f"{judged.covered.mean():.0%} of the measurements are inside. Subnets that a search picks are better "
        "than collected ones, so "
        "their predictions reach further and can be worse; therefore measurements decide, not predictions."
    )
    return Picture(drawing, rows, caption)


def describe_limits(chosen: Chosen) -> str:
    """The limits as flags, or nothing if the file does not say."""
    return " ".join(map(str, chosen.choice.constraints))


def describe_prediction(predicted: float | None, interval: tuple[float, float] | None) -> str:
    """`97.1% (96.0 to 98.2)`, or a dash."""
    if predicted is None:
        return "–"
    return _percent(predicted) + (
        f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    )


def _accuracy(label: str) -> Axis:
    return Axis(label, lambda value: f"{100 * value:.6g}%", most=1)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _tested_point(t: Tested, cost: Cost, images: int) -> Point:
    low, high = wilson(t.test_accuracy, images)
    between = f", 90% interval {100 * low:.1f} to {100 * high:.1f}%"
    title = (
        f"{t.budget or t.kind} ({t.kind}): {format_count(t.macs)} MACs, test "
        f"{_percent(t.test_accuracy)}{between}"
    )
    label = {"selected": t.budget, "random": ""}.get(t.kind, t.kind)
    return Point(
        getattr(t, cost), t.test_accuracy, (low, high) if t.kind == "selected" else None, label, title
    )


def _known_point(k: Known, cost: Cost, images: int) -> Point:
    interval = wilson(k.val_accuracy, images) if k.kind == "selected" else None
    title = f"{k.name or k.kind}: {format_count(k.macs)} MACs, validation {_percent(k.val_accuracy)}"
    return Point(getattr(k, cost), k.val_accuracy, interval, k.name, title)


def _known_row(k: Known) -> dict[str, Any]:
    return {
        name: getattr(k, name) for name in ("kind", "name", "macs", "latency_ms", "val_accuracy")
    } | _arch_row(k.arch)


def _chosen_row(c: Chosen) -> dict[str, Any]:
    names = ("macs", "params", "latency_ms", "predicted_accuracy", "val_accuracy", "explore", "pairs", "seed")
    facts = {name: getattr(c.choice, name) for name in names}
    low, high = c.choice.predicted_interval() or (None, None)
    return (
        {"budget": c.name, "limits": describe_limits(c)}
        | facts
        | {"predicted_low": low, "predicted_high": high}
        | _arch_row(c.arch)
    )


def _arch_row(arch: Arch) -> dict[str, Any]:
    """Lists joined by dashes."""
    return {
        name: "-".join(map(str, value)) if isinstance(value, list) else value
        for name, value in arch.model_dump(mode="json").items()
    }
