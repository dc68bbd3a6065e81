"""The table and the picture of `benchmarks/worth.py`, from the result.json files of all that it compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.plot.canvas import side_by_side, to_svg, write_png
from engine.plot.chart import Axis, Point, Series, draw_chart
from engine.run import read_json
from engine.runs.writing import atomic


class Line(NamedTuple):
    """A line of the table: a data set and a number of budgets.

    points: supernet minus alone in points of test accuracy, one row a seed and one column a budget.
    hours, alone_hours: CPU time of the way and of the K networks that count, mean over seeds.
    capped: share of networks alone that trained for the most epochs allowed, so for less time.
    """

    name: str
    count: int
    budgets: list[str]
    points: np.ndarray
    accuracy: float
    alone_accuracy: float
    hours: float
    alone_hours: float
    capped: float
    mobilenets: float
    tuned: bool


def read_results(out: Path) -> list[Line]:
    """All results in the folder, by data set and number of budgets."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*/seed*/k*/result.json")):
        found = read_json(path)
        groups.setdefault((found["name"], found["budgets"]), []).append(found)
    return [_line(name, count, results) for (name, count), results in sorted(groups.items())]


def _line(name: str, count: int, results: list[dict[str, Any]]) -> Line:
    rows = [row for result in results for row in result["rows"]]
    counted = [row["alone"][row["counts"]] for row in rows]
    budgets = [row["budget"] for row in results[0]["rows"]]
    # Where only some of the budgets were compared, the others took as long.
    hours_of_one = float(np.mean([alone["training_cpu_seconds"] for alone in counted])) / 3600
    return Line(
        name=name,
        count=count,
        budgets=budgets,
        points=np.array([[row["points"] for row in result["rows"]] for result in results]),
        accuracy=100 * float(np.mean([row.get("tuned", row["taken"]) for row in rows])),
        alone_accuracy=100 * float(np.mean([alone["test_accuracy"] for alone in counted])),
        hours=float(np.mean([result["cpu_seconds"] for result in results])) / 3600,
        alone_hours=count * hours_of_one,
        capped=float(np.mean([alone["capped"] for alone in counted])),
        mobilenets=float(np.mean([row["counts"] == "mobilenet" for row in rows])),
        tuned=all(result["tuned"] for result in results),
    )


def spread(points: np.ndarray) -> float:
    """Standard deviation between seeds of the mean over budgets; not a number with one seed."""
    means = points.mean(1)
    return float(means.std(ddof=1)) if len(means) > 1 else float("nan")


def table(lines: Sequence[Line]) -> str:
    """The table as Markdown, and a sentence for each data set."""
    heads = [
        *("data", "K", "seeds", "supernet %", "alone %", "points, mean ± sd", "points per budget"),
        *("CPU hours", "alone", "capped", "MobileNetV3"),
    ]
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        pairs = zip(line.budgets, line.points.mean(0), strict=True)
        cells = [
            line.name if line.tuned else f"{line.name}, not tuned",
            str(line.count),
            str(len(line.points)),
            f"{line.accuracy:.1f}",
            f"{line.alone_accuracy:.1f}",
            f"{line.points.mean():+.1f} ± {spread(line.points):.1f}".replace(" ± nan", ""),
            ", ".join(f"{budget} {value:+.1f}" for budget, value in pairs),
            f"{line.hours:.2f}",
            f"{line.alone_hours:.2f}",
            f"{line.capped:.0%}",
            f"{line.mobilenets:.0%}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join([*text, "", *verdicts(lines), ""])


def verdicts(lines: Sequence[Line]) -> list[str]:
    """From how many budgets on the supernet is no worse on average, a sentence for each data set."""
    said = []
    for name in dict.fromkeys(line.name for line in lines):
        mine = sorted((line for line in lines if line.name == name), key=lambda line: line.count)
        pays = None
        for line in reversed(mine):  # from the most budgets down to the first number at which it does not pay
            if line.points.mean() < 0:
                break
            pays = line.count
        most = mine[-1].count
        if pays is None:
            said.append(f"- {name}: up to {most} budgets the networks trained alone were better on average.")
        else:
            said.append(f"- {name}: from K = {pays} on the supernet was no worse on average.")
    return said


def draw(lines: Sequence[Line], path: Path) -> None:
    """Points against K, a chart for each data set; the bars reach from the worst seed to the best."""
    charts = []
    for name in dict.fromkeys(line.name for line in lines):
        mine = sorted((line for line in lines if line.name == name), key=lambda line: line.count)
        points = []
        for line in mine:
            means = line.points.mean(1)
            points.append(Point(line.count, float(means.mean()), (float(means.min()), float(means.max()))))
        zero = [Point(mine[0].count, 0.0), Point(mine[-1].count, 0.0)]
        looks = [
            Series("as good as alone", "dashes", "quiet", 1.2, zero),
            Series("mean over budgets and seeds", "line", "chosen", 1.2, points),
            Series("seeds from worst to best", "disc", "chosen", 5, points),
        ]
        across, up = (
            Axis("budgets K", "{:g}".format, log=True),
            Axis("points of test accuracy", "{:+g}".format),
        )
        charts.append(draw_chart(name, across, up, looks))
    drawing = side_by_side(
        "Supernet minus networks trained alone, for equal CPU time", charts, min(2, len(charts))
    )
    if path.suffix == ".png":
        write_png(drawing, path)
    else:
        with atomic(path) as temporary:
            temporary.write_text(to_svg(drawing), encoding="utf-8")
