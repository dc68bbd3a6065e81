"""What is measured of a set of model files: rounds of timings, their percentiles, and how far they agree."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.errors import UserError
from engine.onnx_timing import DIFFERENCE_AT_MOST, halves_of, time_runs
from engine.outside.documents import DocumentError, parse_json
from engine.seed import numpy_generator
from export.benchmark.partitions import PROVIDERS, Estimate, estimate_partitions
from export.benchmark.probe import Probe, probe_file
from export.formats import format_of
from export.formats.onnx import ANY_SIZE
from export.manifest import is_manifest, manifest_path, read_manifest

FEWEST_FOR_P99 = 100  # of fewer runs, the 99th percentile would be the slowest one
DEFAULT_ROUNDS = 14  # each has at least 8 runs, together enough for the 99th percentile
DEFAULT_SECONDS = 0.1  # for each file in each round


class AnySizeError(UserError):
    """A file takes images of any size, so that no one time is its time."""


class ModelFile(NamedTuple):
    """A model file that can be timed.

    Args:
        name: what to call it.
        path: where it is.
        probe: what is in it.
        says: the metadata in the file, or the manifest beside it for a format without metadata.
        nodes: how many nodes the file has, as the exporter left it; None where there is no ONNX graph.
        estimates: what each execution provider of phones might take; empty where there is no ONNX graph.
    """

    name: str
    path: Path
    probe: Probe
    says: dict[str, Any]
    nodes: int | None
    estimates: dict[str, Estimate]

    @property
    def accuracy(self) -> float | None:
        """Top-1 of this file on validation images, as it says itself, in [0, 1]."""
        return self._number("accuracy", "file")

    @property
    def images(self) -> int | None:
        """On how many images its accuracy was measured, as the file says itself."""
        count = self._number("accuracy", "images")
        return None if count is None else int(count)

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates of one image, as the file says itself."""
        return self._number("macs")

    def _number(self, *keys: str) -> float | None:
        """A number that the file says; none where it is absent or something else."""
        value: Any = self.says
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        # JSON's true is an int in Python.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else None

    @property
    def side(self) -> int:
        """Pixels along an edge of the image, in either layout."""
        return self.probe.shape[2]


def open_model_file(name: str, path: Path, threads: int) -> ModelFile:
    """Look into a file.

    Args:
        name: what to call it.
        path: the file.
        threads: of its runtime.

    Raises:
        AnySizeError: it takes images of any size.
        UserError: it is missing, no model, damaged, not what the manifest beside it says, or not an image
            classifier, or its runtime is not installed.
    """
    file_format = format_of(path)
    if not path.is_file():
        raise UserError(
            f"Model file '{path}' does not exist; python -m export.onnx writes them to export/ in the run's "
            "folder."
        )
    file_format.check_installed()
    if reason := file_format.not_timed_here():
        raise UserError(f"Model file '{path}' cannot be timed on this machine: {reason}; leave it out.")
    beside, manifest = manifest_path(path), {}
    # A JSON file of that name may be somebody else's.
    if beside.is_file() and is_manifest(beside):
        manifest = read_manifest(path).model_dump(mode="json")
    # Another process opens the file first: a damaged file can take a process down.
    probe = probe_file(path, threads)
    if probe == ANY_SIZE:
        raise AnySizeError(
            f"Model file '{path}' cannot be timed: {ANY_SIZE}, and its time depends on the size; time the "
            "file that python -m export.onnx writes without --bake preprocessing."
        )
    if isinstance(probe, str):
        raise UserError(
            f"Model file '{path}' cannot be used ({probe}); copy it again, or write it again with python -m "
            "export.onnx."
        )
    # The metadata in the file comes first: the file may have been copied without its manifest.
    says = _values(probe.metadata) or manifest
    graph = file_format.read_graph(path)
    if graph is None:
        return ModelFile(name, path, probe, says, None, {})
    nodes = len(graph.graph.node)
    return ModelFile(name, path, probe, says, nodes, estimate_partitions(graph, probe.shape))


def _values(metadata: dict[str, str]) -> dict[str, Any]:
    """Metadata as values; a text that is not JSON stays a text."""
    values: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            values[key] = parse_json(text)
        except DocumentError:
            values[key] = text
    return values


def comparison_complaint(files: Sequence[ModelFile]) -> str:
    """Why the accuracies of these files must not be compared, as a sentence; empty if they may be."""
    counts = {file.images for file in files if file.accuracy is not None}
    if len(counts) <= 1:
        return ""
    shown = ", ".join("unknown" if count is None else str(count) for count in sorted(counts, key=_count))
    return (
        f"the accuracies were measured on different numbers of images ({shown}), so they cannot be compared; "
        "export with the same --images"
    )


def _count(images: int | None) -> int:
    return images or 0


class Timing(NamedTuple):
    """Milliseconds of every run, wall and CPU, by round."""

    wall: dict[int, list[float]]
    cpu: dict[int, list[float]]

    def percentile(self, q: float) -> float | None:
        """The q-th percentile of all runs, in wall time; none for the 99th of fewer than 100 runs."""
        runs = [ms for times in self.wall.values() for ms in times]
        if q >= 99 and len(runs) < FEWEST_FOR_P99:
            return None
        return float(np.percentile(runs, q))

    @property
    def cpu_p50(self) -> float:
        """Median CPU time of a run, which hardly sees other programs."""
        return float(np.median([ms for times in self.cpu.values() for ms in times]))

    @property
    def runs(self) -> int:
        """How many runs were timed."""
        return sum(len(times) for times in self.wall.values())

    @property
    def noise(self) -> float:
        """How much the medians of even and of odd rounds differ, as a share of the smaller."""
        halves = halves_of({turn: float(np.median(times)) for turn, times in self.wall.items()})
        assert halves is not None, "two rounds or more"
        return max(halves) / min(halves) - 1


def timing_complaint(timing: Timing, threads: int) -> str:
    """Half a sentence on why the wall times should not be believed; empty if they may be."""
    if timing.noise > DIFFERENCE_AT_MOST:
        return f"two halves of the rounds differ by {timing.noise:.0%}"
    # A run whose wall time is longer than its CPU time has waited for other programs.
    waited = (timing.percentile(50) or 0.0) / timing.cpu_p50
    # With more threads the CPU time is that of the process, so it says nothing about waiting.
    if threads == 1 and waited > 1 + DIFFERENCE_AT_MOST:
        return f"they are {waited:.1f} times its CPU time, so that it waited for others"
    return ""


def time_files(
    files: Sequence[ModelFile], rounds: int, threads: int, seconds: float, advance: Callable[[str], None]
) -> list[Timing]:
    """Time files as programs on this machine would run them.

    Every round visits all files in a new random order, each in a new session. The sessions are not exact:
    8-bit products are summed as this CPU does it fastest.

    Args:
        files: what to time.
        rounds: visits of each file.
        threads: of the runtimes.
        seconds: for each file in each round.
        advance: called with the file's name after each visit.
    """
    timings = [Timing({}, {}) for _ in files]
    # Never all runs of a file at once: a machine that slows down when it gets hot would favour the first.
    for turn in range(rounds):
        for i in numpy_generator(0, "benchmark", turn).permutation(len(files)):
            path = files[i].path
            run = format_of(path).timed_run(path, files[i].probe.shape, threads)
            timings[i].wall[turn], timings[i].cpu[turn] = time_runs(run, threads, seconds)
            advance(files[i].name)
    return timings


def row_of(file: ModelFile, timing: Timing, threads: int) -> dict[str, Any]:
    """A line of benchmark.csv: times in milliseconds, sizes in bytes; None where nothing is known."""
    operators = file.probe.operators
    row: dict[str, Any] = {
        "file": file.name,
        "bytes": sum(part.stat().st_size for part in format_of(file.path).parts(file.path)),
        "input": "x".join(map(str, file.probe.shape)),
        "val_accuracy": file.accuracy,
        "val_images": file.images,
        "macs": file.macs,
        "memory": file.probe.memory or None,
        "memory_added": file.probe.added or None,
        "wall_p50": timing.percentile(50),
        "wall_p90": timing.percentile(90),
        "wall_p99": timing.percentile(99),
        "cpu_p50": timing.cpu_p50,
        "noise": timing.noise,
        "runs": timing.runs,
        "nodes": file.nodes,
        "nodes_executed": sum(count for _, count, _ in operators) if operators else None,
    }
    for provider in PROVIDERS:
        guess = file.estimates.get(provider)
        row[f"{provider}_partitions_estimate"] = None if guess is None else guess.partitions
        row[f"{provider}_share_estimate"] = None if guess is None else guess.share
    runtime = f"{format_of(file.path).runtime} {format_of(file.path).version()}"
    return row | {"threads": threads, "runtime": runtime, "machine": platform.machine()}


def benchmark_files(
    paths: Sequence[Path | str],
    rounds: int = DEFAULT_ROUNDS,
    threads: int = 1,
    seconds: float = DEFAULT_SECONDS,
) -> list[dict[str, Any]]:
    """Time model files on this machine's CPU, one image at a time.

        rows = export.benchmark_files(["a.onnx", "b.onnx"])
        rows[0]["wall_p50"], rows[0]["noise"]          milliseconds; above 0.1 do not believe them

    Args:
        paths: the model files, of any known format.
        rounds: visits of each file, two or more.
        threads: of the runtimes.
        seconds: for each file in each round.

    Returns:
        For each file what a line of benchmark.csv holds: times in milliseconds, sizes in bytes.

    Raises:
        UserError: a file is missing, damaged or no image classifier, or its runtime is not installed.
    """
    if rounds < 2:
        raise UserError(f"Noise is told from two rounds or more, not from {rounds}; give rounds=2 or more.")
    files = [open_model_file(Path(path).name, Path(path), threads) for path in paths]
    timings = time_files(files, rounds, threads, seconds, _ignore)
    return [row_of(file, timing, threads) for file, timing in zip(files, timings, strict=True)]


def _ignore(name: str) -> None:
    """Nobody watches the progress."""
