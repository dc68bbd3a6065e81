"""Exported files of selected subnets, as their manifests in export/ tell: size, accuracy and time."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt

from engine.config import validate
from engine.errors import UserError
from engine.outside.documents import MOST_JSON_BYTES, read_text
from engine.outside.names import PlainName
from engine.run import read_json
from ofa.space.arch import Arch
from ofa.space.codes import encode
from ofa.space.space import Space
from ofa.tuned import tuned_digest
from predictors.reporting.html import DASH, html_cell, html_table, measured_cell, notes

BENCHMARK = "benchmark.csv"  # of export.benchmark, beside the files


class FileAccuracy(BaseModel):
    """Top-1 of the file in [0, 1] on validation images."""

    file: float = Field(ge=0, le=1)
    images: NonNegativeInt


class FileRecord(BaseModel):
    """What the report reads of a manifest that export.onnx wrote; docs/export.md lists all keys."""

    file: PlainName
    subnet: str
    target: str
    precision: str = ""
    bytes: NonNegativeInt
    milliseconds: FiniteFloat | None = None
    accuracy: FileAccuracy | None = None
    weights_sha256: str | None = None
    architecture: dict[str, Any] = {}


class ExportedFile(NamedTuple):
    """A file of a selected subnet.

    milliseconds: of one image where the file was exported.
    p50_ms, p90_ms: of one image where export.benchmark ran last; none if it did not time this file.
    """

    budget: str
    file: str
    target: str
    precision: str
    bytes: int
    val_accuracy: float | None
    images: int | None
    milliseconds: float | None
    p50_ms: float | None
    p90_ms: float | None
    threads: int | None


def read_exported(
    run: Path, space: Space, selected: Mapping[str, Arch], weights_sha256: str
) -> list[ExportedFile]:
    """The exported files of selected subnets, in the order of `selected`.

    A file of other weights, of another architecture or of another size than its manifest says is left out; a
    printed sentence says so.

    Args:
        run: the run folder.
        space: of the run.
        selected: architectures by budget.
        weights_sha256: of the run's weights.

    Raises:
        UserError: a manifest or the benchmark is damaged.
    """
    folder = run / "export"
    times = _benchmark(folder / BENCHMARK)
    found = []
    for path in sorted(folder.glob("*.json")):
        record = _manifest(path)
        if record is None or record.subnet not in selected:
            continue
        reason = _stale(folder, record, space, selected[record.subnet], weights_sha256)
        reason = reason or _tuned_otherwise(record, tuned_digest(run, record.subnet))
        if reason:
            print(f"'{folder / record.file}' {reason}, so the report leaves it out; export it again.")
            continue
        found.append(_exported_file(record, times.get((record.file, record.bytes), {})))
    ordered = []
    for budget in selected:
        # The file for CPUs, which has the shortest name, comes first.
        ordered += sorted(files_of(found, budget), key=_name_order)
    return ordered


def _name_order(file: ExportedFile) -> tuple[int, str]:
    return len(file.file), file.file


def _manifest(path: Path) -> FileRecord | None:
    """A manifest, or none if the JSON file is something else, which another program may have left there."""
    try:
        values = read_json(path)
    except UserError:
        return None
    # The three keys by which export tells a manifest.
    if not isinstance(values, dict) or not {"file", "target", "subnet"} <= values.keys():
        return None
    return validate(FileRecord, values, str(path))


def _stale(folder: Path, record: FileRecord, space: Space, arch: Arch, weights_sha256: str) -> str:
    """Why a file does not belong to the selected subnet; empty if it does."""
    path = folder / record.file
    if not path.is_file():
        return "is not there"
    if path.stat().st_size != record.bytes:
        return f"does not have the {record.bytes} bytes that were verified"
    if record.weights_sha256 not in (None, weights_sha256):
        return "is of other weights than the run has"
    stated = record.architecture.get("arch")
    if stated is None:
        return "does not say of which architecture it is"
    exported = validate(Arch, stated, f"architecture of {path}")
    if (encode(space, exported) != encode(space, arch)).any():
        return f"is of another architecture than '{record.subnet}' has now"
    return ""


def _tuned_otherwise(record: FileRecord, tuned_sha256: str | None) -> str:
    """Why a file does not have the weights that the report measures; empty if it has them."""
    stated = (record.architecture.get("tuned") or {}).get("weights_sha256")
    if stated == tuned_sha256:
        return ""
    if stated is None:
        return f"is of '{record.subnet}' before it was tuned"
    return f"is of another tuning than '{record.subnet}' has now"


def _benchmark(path: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The rows of benchmark.csv by name and size of the file: a file that changed has no times."""
    if not path.is_file():
        return {}
    rows = {}
    for row in csv.DictReader(io.StringIO(read_text(path, MOST_JSON_BYTES))):
        size = _number(row.get("bytes"))
        if size is not None:
            rows[str(row.get("file")), int(size)] = row
    return rows


def _number(text: str | None) -> float | None:
    """A number of a CSV file; none where the cell is empty or holds something else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _exported_file(record: FileRecord, times: Mapping[str, str]) -> ExportedFile:
    accuracy = record.accuracy
    threads = _number(times.get("threads"))
    return ExportedFile(
        budget=record.subnet,
        file=record.file,
        target=record.target,
        precision=record.precision,
        bytes=record.bytes,
        val_accuracy=accuracy.file if accuracy else None,
        images=accuracy.images if accuracy else None,
        milliseconds=record.milliseconds,
        p50_ms=_number(times.get("wall_p50")),
        p90_ms=_number(times.get("wall_p90")),
        threads=None if threads is None else int(threads),
    )


def describe_file(file: ExportedFile) -> str:
    """`300k.onnx, 1.2 MB, 0.41 ms`: the benchmark's median where there is one."""
    words = [file.file, format_megabytes(file.bytes)]
    milliseconds = file.milliseconds if file.p50_ms is None else file.p50_ms
    if milliseconds is not None:
        words.append(format_milliseconds(milliseconds))
    return " ".join([words[0], f"({', '.join(words[1:])})"])


def format_megabytes(size: int) -> str:
    """`1.2 MB`, and for small files `81 kB`."""
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def format_milliseconds(milliseconds: float) -> str:
    """`0.41 ms`."""
    return f"{milliseconds:.3g} ms"


def files_of(files: Sequence[ExportedFile], budget: str) -> list[ExportedFile]:
    """The files of one selected subnet."""
    return [file for file in files if file.budget == budget]


def exported_section(files: Sequence[ExportedFile]) -> list[str]:
    """The part of the page about exported files; empty without any."""
    if not files:
        return []
    rows = []
    for file in files:
        accuracy = DASH
        if file.val_accuracy is not None and file.images:
            accuracy = measured_cell(file.val_accuracy, file.images)
        here = DASH if file.milliseconds is None else html_cell(format_milliseconds(file.milliseconds))
        timed = DASH
        if file.p50_ms is not None:
            tail = [] if file.p90_ms is None else [f"p90 {format_milliseconds(file.p90_ms)}"]
            tail += [] if file.threads is None else [f"threads: {file.threads}"]
            timed = html_cell(format_milliseconds(file.p50_ms), *tail)
        target = f"{file.target}, {file.precision}" if file.precision else file.target
        size = html_cell(format_megabytes(file.bytes))
        rows.append([html_cell(file.file, target), html_cell(file.budget), size, accuracy, here, timed])
    heads = ["file", "subnet", "size", "validation", "time at export", "time in benchmark"]
    if not any(file.p50_ms is not None for file in files):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return [
        "<h2>Exported files</h2>",
        html_table(heads, rows),
        notes(
            "Files that export.onnx wrote and compared with torch. Validation: accuracy of the file itself. "
            "Times are of one image: at export on the machine that exported, in benchmark the median of "
            "export.benchmark’s last run."
        ),
    ]
