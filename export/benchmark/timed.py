"""What was measured of a set of model files: rounds of timings, their percentiles and how far they agree, as
rows of a table."""

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from engine.errors import UserError
from engine.onnx_timing import time_item
from engine.run import read_json
from engine.seed import numpy_generator
from export.benchmark.partitions import PROVIDERS, Estimate, estimate
from export.benchmark.probe import Probe, probe
from export.manifest import SUFFIXES, manifest_path, read_manifest
from predictors.latency.timings import halves_of

FEWEST_FOR_P99 = 100


class ModelFile(NamedTuple):
    """A file that onnxruntime runs, and what to call it. nodes: in the file, as the exporter left it; none
    for .ort."""

    name: str
    path: Path
    probe: Probe
    nodes: int | None
    estimates: dict[str, Estimate]

    @property
    def accuracy(self) -> float | None:
        """Top-1 of this file on validation images, as it says itself, in [0, 1]."""
        return self._said("accuracy", "file")

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates of one image, as the file says itself."""
        return self._said("macs")

    def _said(self, *keys: str) -> float | None:
        """A number in the metadata, whose values are JSON; nothing where it is absent or something else."""
        try:
            value = json.loads(self.probe.metadata.get(keys[0], "null"))
        except ValueError:
            return None
        for key in keys[1:]:
            value = value.get(key) if isinstance(value, dict) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def side(self) -> int:
        """Pixels along an edge of the image, in either layout."""
        return self.probe.shape[2]


def open_file(name: str, path: Path, threads: int) -> ModelFile:
    """Look into a file.

    Raises:
        UserError: it is missing, no model, damaged, not what the manifest beside it says, or not an image
            classifier.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"'{path}' is not a model file: its name must end in {' or '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(
            f"Model file '{path}' does not exist; python -m export.onnx writes them to export/ in the run's "
            "folder."
        )
    beside = manifest_path(path)
    if beside.is_file() and "sha256" in read_json(beside):
        read_manifest(path)
    found = probe(path, threads)
    if isinstance(found, str):
        raise UserError(
            f"Model file '{path}' cannot be used ({found}); copy it again, or write it again with python -m "
            "export.onnx."
        )
    nodes = len(onnx.load(path, load_external_data=False).graph.node) if path.suffix == ".onnx" else None
    return ModelFile(name, path, found, nodes, estimate(path, found.shape))


class Timing(NamedTuple):
    """Milliseconds of every run, wall and CPU, by round."""

    wall: dict[int, list[float]]
    cpu: dict[int, list[float]]

    def percentile(self, q: float) -> float | None:
        """Of all runs, in wall time; the 99th only if there were 100 runs or more, since of fewer it would be
        the worst one."""
        runs = [ms for times in self.wall.values() for ms in times]
        return None if q >= 99 and len(runs) < FEWEST_FOR_P99 else float(np.percentile(runs, q))

    @property
    def cpu_p50(self) -> float:
        """Median CPU time of a run, which hardly sees other programs."""
        return float(np.median([ms for times in self.cpu.values() for ms in times]))

    @property
    def runs(self) -> int:
        """How many runs were timed."""
        return sum(map(len, self.wall.values()))

    @property
    def noise(self) -> float:
        """How much the medians of even and of odd rounds differ, as a share of the smaller."""
        halves = halves_of({turn: float(np.median(times)) for turn, times in self.wall.items()})
        assert halves is not None, "two rounds or more"
        return max(halves) / min(halves) - 1


def time_files(
    files: Sequence[ModelFile], rounds: int, threads: int, seconds: float, advance: Callable[[str], None]
) -> list[Timing]:
    """Every round visits all files in a new random order, each in a new session; advance(note) after each
    visit."""
    timings = [Timing({}, {}) for _ in files]
    for turn in range(rounds):
        for i in numpy_generator(0, "benchmark", turn).permutation(len(files)):
            timings[i].wall[turn], timings[i].cpu[turn] = time_item(
                files[i].path, files[i].probe.shape, threads, seconds
            )
            advance(files[i].name)
    return timings


def row_of(file: ModelFile, timing: Timing, threads: int) -> dict[str, Any]:
    """A line of the CSV: times in milliseconds, sizes in bytes; nothing where nothing is known."""
    row: dict[str, Any] = {
        "file": file.name,
        "bytes": file.path.stat().st_size,
        "input": "x".join(map(str, file.probe.shape)),
        "val_accuracy": file.accuracy,
        "macs": file.macs,
        "memory": file.probe.memory or None,
        "memory_added": file.probe.added or None,
        **{f"wall_p{q}": timing.percentile(q) for q in (50, 90, 99)},
        "cpu_p50": timing.cpu_p50,
        "noise": timing.noise,
        "runs": timing.runs,
        "nodes": file.nodes,
        "nodes_executed": sum(count for _, count, _ in file.probe.operators),
    }
    for provider in PROVIDERS:
        guess = file.estimates.get(provider)
        row[f"{provider}_partitions_estimate"] = None if guess is None else guess.partitions
        row[f"{provider}_share_estimate"] = None if guess is None else guess.share
    return row | {
        "threads": threads,
        "runtime": f"onnxruntime {ort.__version__}",
        "machine": platform.machine(),
    }
