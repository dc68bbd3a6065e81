"""What the benchmark shows: two tables, two CSV files and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from engine.config import format_count
from engine.plot.canvas import Role, write_png
from engine.plot.chart import Axis, Point, Series, draw_chart
from engine.run import write_csv
from export.benchmark.measure import ModelFile, Timing, comparison_complaint

# More would make a table or a picture that nobody reads.
MOST_OPERATORS = 2  # in a line of the table
MOST_LINES = 6  # networks without an accuracy in the picture
PROVIDERS_SHOWN = ("nnapi", "coreml")
ROLES: tuple[Role, ...] = ("known", "random", "extreme")


def latency_table(
    files: Sequence[ModelFile], timings: Sequence[Timing], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """The table of what a file costs: time, memory and size, with its accuracy."""
    table = Table("file", "p50 ms", "p90", "p99", "CPU ms", "noise", "memory", "size", "top-1")
    mixed = bool(comparison_complaint(files))
    for file, timing, row in zip(files, timings, rows, strict=True):
        times = [_or_dash(row[f"wall_p{q}"], "{:.3g}") for q in (50, 90, 99)]
        sizes = [f"{format_count(row[key])}B" if row[key] else "-" for key in ("memory_added", "bytes")]
        accuracy = _or_dash(file.accuracy, "{:.1%}")
        # Accuracies that cannot be compared say on how many images they are.
        if mixed and file.accuracy is not None:
            accuracy += f" of {file.images or '?'}"
        table.add_row(file.name, *times, f"{timing.cpu_p50:.3g}", f"{timing.noise:.0%}", *sizes, accuracy)
    return table


def graph_table(files: Sequence[ModelFile], rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the graphs hold: nodes in the file > executed, the operators that take most time, and estimates.

    An estimate is the share of the nodes that a provider of phones might take, in how many partitions, and
    whether to try.
    """
    titles = [f"{name} (estimate)" for name in PROVIDERS_SHOWN]
    table = Table("file", "nodes", "most time in", *titles)
    for file, row in zip(files, rows, strict=True):
        operators = file.probe.operators
        # Shares of what the profiler saw; its times are no sum of a run.
        total = sum(microseconds for _, _, microseconds in operators)
        most = [f"{name} {spent / total:.0%}" for name, _, spent in operators[:MOST_OPERATORS]]
        said = []
        for provider in PROVIDERS_SHOWN:
            guess = file.estimates.get(provider)
            said.append(f"{guess.share:.0%} in {guess.partitions}: {guess.verdict}" if guess else "-")
        nodes = f"{_or_dash(file.nodes, '{}')} > {_or_dash(row['nodes_executed'], '{}')}"
        table.add_row(file.name, nodes, ", ".join(most) or "-", *said)
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def write_operators(path: Path, files: Sequence[ModelFile]) -> None:
    """Time by operator, of one run of each file, as a CSV."""
    rows = []
    for file in files:
        for name, nodes, spent in file.probe.operators:
            rows.append({"file": file.name, "operator": name, "nodes": nodes, "microseconds": spent})
    write_csv(path, ["file", "operator", "nodes", "microseconds"], rows)


def draw_benchmark(files: Sequence[ModelFile], timings: Sequence[Timing], path: Path) -> None:
    """Draw accuracy against median latency.

    Networks without an accuracy are vertical lines where their latency is. One file or more must have one.
    """
    points: list[Point] = []
    without: list[tuple[str, float]] = []
    for file, timing in zip(files, timings, strict=True):
        ms = timing.percentile(50) or 0.0  # never None: only the 99th percentile may be unknown
        if file.accuracy is None:
            without.append((file.name, ms))
        else:
            points.append(Point(ms, file.accuracy, label=file.name.removesuffix(".onnx")))
    points.sort()
    lowest, highest = min(point.y for point in points), max(point.y for point in points)
    if lowest == highest:  # a line needs a length
        lowest, highest = lowest - 0.01, highest + 0.01
    series = []
    # The last ones: files that were added for comparison come after the user's own.
    for i, (name, ms) in enumerate(without[-MOST_LINES:]):
        ends = [Point(ms, lowest), Point(ms, highest)]
        series.append(Series(f"{name}: no accuracy", "dashes", ROLES[i % len(ROLES)], 1.5, ends))
    series.append(Series("files", "star", "chosen", 9, points))
    latency = Axis("median latency of one image", _milliseconds, log=True)
    accuracy = Axis("top-1 on validation images, as the files say", _percent_text, most=1)
    write_png(draw_chart("Accuracy against latency", latency, accuracy, series), path)


def _milliseconds(ms: float) -> str:
    return f"{ms:.3g} ms"


def _percent_text(share: float) -> str:
    return f"{100 * share:.3g}%"
