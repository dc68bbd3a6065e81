"""Measure exported files on this machine: latency with its noise, memory, size, operators, and what phones
might take of them."""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.progress import progress
from engine.command.table import show
from engine.config import format_count
from engine.errors import UserError
from engine.onnx_timing import AT_LEAST
from engine.plot.canvas import Role, write_png
from engine.plot.chart import Axis, Point, Series, draw_chart
from engine.run import atomic
from export.benchmark.baselines import BASELINES, write_baseline
from export.benchmark.timed import FEWEST_FOR_P99, ModelFile, Timing, open_file, row_of, time_files
from export.bundle.contents import MANIFEST
from ofa.trained import run_flag
from predictors.latency.timings import DIFFERENCE_AT_MOST

MOST_OPERATORS, MOST_LINES = 2, 6
SHOWN = ("nnapi", "coreml")
ROLES: tuple[Role, ...] = ("known", "random", "extreme")


class Benchmark(Command):
    """Time model files (.onnx or .ort) in onnxruntime on this machine's CPU, one image at a time, and say
    what they hold and need.

    Every round visits all files in a new order; p50, p90 and p99 are of all runs in wall time, noise is how
    far the medians of even and odd rounds differ. Memory is what loading and running the file adds to a
    process of its own. What NNAPI and CoreML would take is an estimate from lists of operators, not a
    measurement. Accuracy is what the file says of itself. An int8 file is often no faster than float32 on an
    x86 CPU: what counts is the table of the device.

    examples:
      python -m export.benchmark runs/supernet/export/*.onnx
      python -m export.benchmark model.onnx model.ort --threads 4 --compare
    """

    files: CliPositionalArg[list[Path]] = Field(description="model files")
    threads: int = Field(1, ge=1, description="threads of onnxruntime")
    rounds: int = Field(
        14,
        ge=2,
        description=(
            f"visits of each file; p99 needs {FEWEST_FOR_P99} runs, and a visit has {AT_LEAST} at least"
        ),
    )
    seconds: float = Field(0.1, ge=0, description="time for each file in each round")
    compare: bool = Field(
        False,
        description=(
            "also MobileNetV3 Small and Large and EfficientNet-B0 (random weights) at the files' sizes"
        ),
    )
    out: Path | None = Field(
        None,
        description="folder for benchmark.csv, operators.csv and benchmark.png; none: that of the first file",
    )

    def execute(self) -> int:
        """Look into every file, time them, show and write."""
        if len(set(self.files)) < len(self.files) or not self.files:
            raise UserError("Name one model file or more, each once.")
        with tempfile.TemporaryDirectory() as folder:
            files = self._open()
            if self.compare:
                files += self._baselines(files, Path(folder))
            with progress("time", self.rounds * len(files)) as advance:
                timings = time_files(files, self.rounds, self.threads, self.seconds, advance)
            rows = [row_of(file, timing, self.threads) for file, timing in zip(files, timings, strict=True)]
        show(latency_table(files, timings, rows))
        show(graph_table(files, rows))
        for file, timing in zip(files, timings, strict=True):
            if why := complaint(timing, self.threads):
                print(
                    f"do not believe the times of {file.name}: {why}; stop other programs, or measure with "
                    "more --rounds"
                )
        self._write(files, timings, rows)
        return 0

    def _open(self) -> list[ModelFile]:
        """The files, called by their names where that tells them apart."""
        files, names = [], [path.name for path in self.files]
        with progress("look into files", len(self.files)) as advance:
            for path, name in zip(self.files, names, strict=True):
                files.append(open_file(name if names.count(name) == 1 else str(path), path, self.threads))
                advance(name)
        return files

    def _baselines(self, files: Sequence[ModelFile], folder: Path) -> list[ModelFile]:
        """Each known network at each size that the files have, for as many classes."""
        classes = {
            side: max(f.probe.outputs for f in files if f.side == side)
            for side in sorted({f.side for f in files})
        }
        found = []
        with progress("export networks to compare", len(BASELINES) * len(classes)) as advance:
            for side, (name, title) in product(classes, BASELINES.items()):
                found.append(
                    open_file(
                        f"{title} @{side}", write_baseline(name, side, classes[side], folder), self.threads
                    )
                )
                advance(found[-1].name)
        return found

    def _write(
        self, files: Sequence[ModelFile], timings: Sequence[Timing], rows: list[dict[str, Any]]
    ) -> None:
        place = self.files[0].parent
        folder = self.out or place
        write_csv(folder / "benchmark.csv", rows)
        write_csv(folder / "operators.csv", operator_rows(files))
        if any(file.accuracy is not None for file in files):
            draw(files, timings, folder / "benchmark.png")
            print(f"written to {folder}: benchmark.csv, operators.csv, benchmark.png")
        else:
            print(
                f"written to {folder}: benchmark.csv, operators.csv; no picture, since no file says its "
                "accuracy"
            )
        next_one = f"bundle{run_flag(place.parent)}" if (place.parent / "model.json").exists() else "targets"
        print(f"next: python -m export.{f'demo {place}' if (place / MANIFEST).exists() else next_one}")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys; nothing where the value is None."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def complaint(timing: Timing, threads: int) -> str:
    """Why wall times are not those of the file; nothing if they may be."""
    if timing.noise > DIFFERENCE_AT_MOST:
        return f"two halves of the rounds differ by {timing.noise:.0%}"
    waited = (timing.percentile(50) or 0.0) / timing.cpu_p50
    if threads == 1 and waited > 1 + DIFFERENCE_AT_MOST:
        return f"they are {waited:.1f} times its CPU time, so that it waited for others"
    return ""


def latency_table(
    files: Sequence[ModelFile], timings: Sequence[Timing], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """What a user waits for and pays."""
    table = Table("file", "p50 ms", "p90", "p99", "CPU ms", "noise", "memory", "size", "top-1")
    for file, timing, row in zip(files, timings, rows, strict=True):
        times = [_or_dash(row[f"wall_p{q}"], "{:.3g}") for q in (50, 90, 99)]
        sizes = [f"{format_count(row[key])}B" if row[key] else "-" for key in ("memory_added", "bytes")]
        table.add_row(
            file.name,
            *times,
            f"{timing.cpu_p50:.3g}",
            f"{timing.noise:.0%}",
            *sizes,
            _or_dash(file.accuracy, "{:.1%}"),
        )
    return table


def graph_table(files: Sequence[ModelFile], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Nodes, in the file > executed; and what share of them execution providers might take, in how many
    partitions, and whether to try."""
    table = Table("file", "nodes", "most time in", *(f"{name} (estimate)" for name in SHOWN))
    for file, row in zip(files, rows, strict=True):
        total = sum(us for _, _, us in file.probe.operators)
        most = ", ".join(f"{name} {us / total:.0%}" for name, _, us in file.probe.operators[:MOST_OPERATORS])
        guesses = [file.estimates.get(name) for name in SHOWN]
        said = [f"{g.share:.0%} in {g.partitions}: {g.verdict}" if g else "-" for g in guesses]
        table.add_row(file.name, f"{_or_dash(file.nodes, '{}')} > {row['nodes_executed']}", most, *said)
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def operator_rows(files: Sequence[ModelFile]) -> list[dict[str, Any]]:
    """Time by operator, of one run."""
    return [
        {"file": file.name, "operator": name, "nodes": nodes, "microseconds": us}
        for file in files
        for name, nodes, us in file.probe.operators
    ]


def draw(files: Sequence[ModelFile], timings: Sequence[Timing], path: Path) -> None:
    """Accuracy against median latency; networks without an accuracy are lines where their latency is."""
    timed = [(file, timing.percentile(50) or 0.0) for file, timing in zip(files, timings, strict=True)]
    points = sorted(
        Point(ms, file.accuracy, label=file.name.removesuffix(".onnx"))
        for file, ms in timed
        if file.accuracy is not None
    )
    ends = min(p.y for p in points), max(p.y for p in points)
    ends = (ends[0] - 0.01, ends[1] + 0.01) if ends[0] == ends[1] else ends
    others = [(file, ms) for file, ms in timed if file.accuracy is None][-MOST_LINES:]
    lines = [
        Series(
            f"{file.name}: no accuracy",
            "dashes",
            ROLES[i % len(ROLES)],
            1.5,
            [Point(ms, end) for end in ends],
        )
        for i, (file, ms) in enumerate(others)
    ]
    latency = Axis("median latency of one image", lambda ms: f"{ms:.3g} ms", log=True)
    accuracy = Axis("top-1 on validation images, as the files say", lambda y: f"{100 * y:.3g}%", most=1)
    write_png(
        draw_chart(
            "Accuracy against latency",
            latency,
            accuracy,
            [*lines, Series("files", "star", "chosen", 9, points)],
        ),
        path,
    )


if __name__ == "__main__":
    main(Benchmark)
