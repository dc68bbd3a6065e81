"""Run folders as a list: what each is, how far it is, how good, how large; and how one is deleted."""

import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from engine.config import read_yaml
from engine.errors import UserError
from engine.outside.documents import DocumentError, parse_json
from engine.run import RUN_FILES, Run, selected_files
from engine.runs.lock import LOCK


class RunSummary(NamedTuple):
    """A run folder in a few words.

    path: where it is.
    name: its path below the folder that was listed.
    kind: supernet, alone (one architecture), tuned, search, retrained, converted, or run.
    state: finished, epoch x of y, or unfinished.
    data: name of the data source, and of its file or folder.
    best, last: validation accuracies in [0, 1]: the highest of all, and the highest of the last evaluation;
        None where nothing was evaluated.
    holds: what later stages added, such as "200 pairs, 3 selected".
    bytes: size on disk of all files in the folder.
    changed: when its metrics, or another of its own files, were last written.
    """

    path: Path
    name: str
    kind: str
    state: str
    data: str
    best: float | None
    last: float | None
    holds: str
    bytes: int
    changed: datetime


def find_runs(folder: Path) -> list[RunSummary]:
    """All runs below a folder, itself included, newest first.

    A run inside another run is part of it (its tuned subnets) and is not listed.
    """
    summaries = [summarise(path, folder) for path in run_folders(folder)]
    return sorted(summaries, key=_changed, reverse=True)


def _changed(summary: RunSummary) -> datetime:
    return summary.changed


def run_folders(folder: Path) -> Iterator[Path]:
    """Paths of the run folders below `folder`; links are not followed."""
    for path, folders, files in os.walk(folder):
        # config.yaml alone may be anybody's. ofa.convert writes no env.json, and a run that has just started
        # has no model.json yet.
        if "config.yaml" in files and ("env.json" in files or "model.json" in files):
            folders.clear()
            yield Path(path)


def summarise(path: Path, folder: Path) -> RunSummary:
    """What a run folder says of itself. A damaged file is left out, so that one run does not hide all."""
    config = _config(path)
    points = _last_and_accuracies(path / "metrics.jsonl")
    evaluated = [point for point in points if isinstance(point.get("val_accuracy"), float)]
    scores = [point["val_accuracy"] for point in evaluated]
    # Several architectures are evaluated at one step.
    last = [point["val_accuracy"] for point in evaluated if point.get("step") == evaluated[-1].get("step")]
    top = [entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(path) if entry.is_file()]
    return RunSummary(
        path=path,
        name=path.relative_to(folder).as_posix() if path != folder else path.resolve().name,
        kind=kind_of(path, config),
        state=_state(path, config, points),
        data=_data(config),
        best=max(scores, default=None),
        last=max(last, default=None),
        holds=_holds(path),
        bytes=_size(path),
        changed=datetime.fromtimestamp(max(top)).astimezone(),
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path / "config.yaml")
    except UserError:
        return {}


def _last_and_accuracies(path: Path) -> list[dict[str, Any]]:
    """The points of metrics.jsonl that have a validation accuracy, and the last point."""
    if not path.exists():
        return []
    # Most lines are losses. Only those that are needed are parsed, which takes a tenth of the time.
    lines = path.read_bytes().splitlines()
    wanted = [line for line in lines[:-1] if b'"val_accuracy"' in line] + lines[-1:]
    points = []
    for line in wanted:
        try:
            point = parse_json(line)
        except DocumentError:  # a killed process left half a line
            continue
        if isinstance(point, dict):
            points.append(point)
    return points


def kind_of(path: Path, config: dict[str, Any]) -> str:
    """What a run is, by the settings that only its command has; `RunSummary` lists the kinds."""
    if "method" in config:
        return "search"
    if "genotype" in config:
        return "retrained"
    if "teacher_weight" in config:
        return "tuned"
    if "sandwich" in config:
        return "alone" if config.get("arch") else "supernet"
    return "converted" if (path / "model.json").exists() else "run"


def _state(path: Path, config: dict[str, Any], points: list[dict[str, Any]]) -> str:
    if Run(path).finished:
        return "finished"
    try:
        epochs = sum(phase["epochs"] for phase in config.get("phases") or ()) or config["epochs"]
        return f"epoch {points[-1]['epoch'] + 1} of {epochs}"
    except (KeyError, IndexError, TypeError):  # it has just begun, or a file is damaged
        return "unfinished"


def _data(config: dict[str, Any]) -> str:
    data = config.get("data") or {}
    if not isinstance(data, dict):
        return str(data)
    name = str(data.get("name", ""))
    place = data.get("path")
    return f"{name} {Path(str(place)).name}" if place else name


def _holds(path: Path) -> str:
    """What the stages after the training left in the folder."""
    pairs = path / "pairs.jsonl"
    counts = {
        "pairs": pairs.read_bytes().count(b"\n") if pairs.exists() else 0,
        "selected": len(selected_files(path)),
        "tuned": len(list((path / "tuned").glob("*/DONE"))),
        "exported": len(list((path / "export").glob("*.onnx"))),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _size(path: Path) -> int:
    total = 0
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            total += _size(Path(entry.path))
        else:
            total += entry.stat(follow_symlinks=False).st_size
    return total


def delete_run(path: Path) -> list[str]:
    """Delete what commands wrote into a run folder, and the folder if nothing else is in it.

    Returns:
        Names of what stays: files of the user's own.
    """
    for entry in list(path.iterdir()):
        # Names with a dot: what a killed process left of a file that was not written to its end.
        ours = entry.name in RUN_FILES or any(entry.name.startswith(f".{name}.") for name in RUN_FILES)
        if not ours:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    left = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK)
    if not left:
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()
    return left
