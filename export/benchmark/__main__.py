"""Measure exported files on this machine: latency with its noise, memory, size, operators, and what phones
might take of them."""

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.command.cli import Command, main
from engine.command.progress import progress
from engine.command.start import say
from engine.command.table import show
from engine.errors import UserError
from engine.onnx_timing import AT_LEAST
from engine.run import write_csv
from engine.runs.lock import run_around, write_lock
from export.benchmark.baselines import BASELINES, write_baseline
from export.benchmark.measure import (
    DEFAULT_ROUNDS,
    DEFAULT_SECONDS,
    FEWEST_FOR_P99,
    AnySizeError,
    ModelFile,
    Timing,
    comparison_complaint,
    open_model_file,
    row_of,
    time_files,
    timing_complaint,
)
from export.benchmark.report import draw_benchmark, graph_table, latency_table, write_operators
from export.bundle.contents import MANIFEST
from ofa.trained import run_flag


class Benchmark(Command):
    """Time model files (.onnx, .ort, .pte) on this machine's CPU, one image at a time, and look into them.

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
    threads: int = Field(1, ge=1, description="threads of the runtime")
    rounds: int = Field(
        DEFAULT_ROUNDS,
        ge=2,
        description=(
            f"visits of each file; p99 needs {FEWEST_FOR_P99} runs, and a visit has {AT_LEAST} at least"
        ),
    )
    seconds: float = Field(DEFAULT_SECONDS, ge=0, description="time for each file in each round")
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
        """Look into every file, time them, show and write the result."""
        if len(set(self.files)) < len(self.files) or not self.files:
            raise UserError("Name one model file or more, each once.")
        folder = self.out or self.files[0].parent
        with write_lock(run_around(folder.resolve()) or folder):
            return self._benchmark()

    def _benchmark(self) -> int:
        # The networks to compare with are written into this folder, and timed before it is removed.
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
            if why := timing_complaint(timing, self.threads):
                print(
                    f"do not believe the times of {file.name}: {why}; stop other programs, or measure with "
                    "more --rounds"
                )
        self._write(files, timings, rows)
        return 0

    def _open(self) -> list[ModelFile]:
        """The files, called by their names where that tells them apart, else by their paths.

        Files that take images of any size are left out.

        Raises:
            UserError: a file is of no use, or all of them take images of any size.
        """
        files, names = [], [path.name for path in self.files]
        left_out: list[AnySizeError] = []
        with progress("look into files", len(self.files)) as advance:
            for path, name in zip(self.files, names, strict=True):
                title = name if names.count(name) == 1 else str(path)
                try:
                    files.append(open_model_file(title, path, self.threads))
                except AnySizeError as error:
                    left_out.append(error)
                advance(name)
        if not files:
            raise left_out[0]
        for reason in left_out:
            say(str(reason))
        return files

    def _baselines(self, files: Sequence[ModelFile], folder: Path) -> list[ModelFile]:
        """Each known network at each size that the files have, for as many classes."""
        # The classifier's share of the cost grows with the classes, so a fair network has as many.
        classes: dict[int, int] = {}
        for file in files:
            classes[file.side] = max(classes.get(file.side, 0), file.probe.outputs)
        found = []
        with progress("export networks to compare", len(BASELINES) * len(classes)) as advance:
            for side in sorted(classes):
                for name, title in BASELINES.items():
                    path = write_baseline(name, side, classes[side], folder)
                    found.append(open_model_file(f"{title} @{side}", path, self.threads))
                    advance(found[-1].name)
        return found

    def _write(
        self, files: Sequence[ModelFile], timings: Sequence[Timing], rows: list[dict[str, Any]]
    ) -> None:
        """Write the CSV files and the picture, and say what comes next."""
        place = self.files[0].parent
        folder = self.out or place
        write_csv(folder / "benchmark.csv", list(rows[0]), rows)
        write_operators(folder / "operators.csv", files)
        complaint = comparison_complaint(files)
        if complaint:
            (folder / "benchmark.png").unlink(missing_ok=True)  # an older one would show other files
            print(f"written to {folder}: benchmark.csv, operators.csv; no picture: {complaint}")
        elif any(file.accuracy is not None for file in files):
            draw_benchmark(files, timings, folder / "benchmark.png")
            print(f"written to {folder}: benchmark.csv, operators.csv, benchmark.png")
        else:
            print(
                f"written to {folder}: benchmark.csv, operators.csv; no picture, since no file says its "
                "accuracy"
            )
        # What comes next depends on where the files lie: in a bundle, in a run, or anywhere.
        if (place / MANIFEST).exists():
            say(f"next: python -m export.demo {shlex.quote(str(place))}")
        elif (place.parent / "model.json").exists():
            say(f"next: python -m export.bundle{run_flag(place.parent)}")
        else:
            say("next: python -m export.targets")


if __name__ == "__main__":
    main(Benchmark)
