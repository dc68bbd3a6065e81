"""Run folders, by which stages hand results to each other.

Every file is written to a temporary name and then renamed (`engine.runs.writing`), so that a reader never
meets half a file. Only lines that are appended to a JSONL file go there directly. Whoever writes holds the
lock of the folder (`engine.runs.lock`).
"""

import contextlib
import csv
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from engine.command.start import command_line
from engine.config import Config, budget_order, read_yaml
from engine.errors import UserError
from engine.outside.documents import MOST_JSON_BYTES, DocumentError, parse_json, read_text
from engine.runs.aside import replace_run
from engine.runs.tracking import Tracker, flat
from engine.runs.writing import atomic, sync, work_folder

# Packages whose versions env.json records.
PACKAGES = ("ofa-toolkit", "torch", "torchvision", "numpy", "scikit-learn", "optuna", "onnx", "onnxruntime")
NOT_REPLAYED = {"config", "out", "resume", "overwrite", "stop_after"}  # settings that config.yaml leaves out
# What a run folder may hold, and so what --overwrite may delete.
RUN_FILES = {
    *("config.yaml", "env.json", "metrics.jsonl", "model.json", "weights.safetensors", "teacher.safetensors"),
    *("state.pt", "tensorboard", "DONE", "pairs.jsonl", "pairs.int8.jsonl", "selected", "tuned"),
    *("optuna.journal", "export", "report", "confusion", "mlflow.json"),
    *("genotype.json", "outcome.json", "cell.svg", "cell.png", "alphas.png"),
    "checkpoints",
}
FRONT = "front.json"  # in selected/: a list of subnets, where the files beside it hold one subnet each
# Settings that a resumed run may change.
MAY_DIFFER = {"device", "threads", "tensorboard", "mlflow", "log_conflicts"}
MAY_DIFFER |= {"keep", "checkpoint_every", "on_divergence", "data.workers"}
WEIGHTS = "weights.safetensors"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file is missing, damaged or beyond a limit.
    """
    text = read_text(path, MOST_JSON_BYTES)
    try:
        return parse_json(text)
    except DocumentError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); write it again with the command that made it."
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; an unfinished last line, left by a killed process, is dropped.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    rows = []
    # Up to the last line break: what stands after it was never written to its end.
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = parse_json(line)
        except DocumentError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; remove the line.")
        rows.append(row)
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file that holds exactly `rows`."""
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write some columns of `rows` as a CSV file.

    Args:
        path: the file.
        columns: names of the columns, in their order; other values of a row are left out.
        rows: values by the name of their column; None becomes an empty cell.
    """
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one object to a JSONL file."""
    # Not atomic, as a copy of the whole file for every line would be slow. `read_lines` drops half a line.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


class Run:
    """One run folder. `docs/run-folder.md` lists its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trackers: Sequence[Tracker] = ()

    @property
    def finished(self) -> bool:
        """Whether the run reached its end: DONE is written last, and what it names is there."""
        try:
            results = (self.path / "DONE").read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            return False
        # Without its result a run is not finished, whatever else lies in the folder.
        return all((self.path / name).is_file() for name in results or [WEIGHTS])

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was started with."""
        return read_yaml(self.path / "config.yaml")

    def log(self, **point: Any) -> None:
        """Append one object to metrics.jsonl.

        Args:
            point: the values by name. One of them is `step`; `arch` names the architecture they belong to.
        """
        append_line(self.path / "metrics.jsonl", point)
        # Values of several architectures at one step need curves of their own.
        prefix = f"{point['arch']}/" if "arch" in point else ""
        curves = {prefix + name: value for name, value in point.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.log(curves, point["step"])

    def mirror_to(self, trackers: Sequence[Tracker]) -> None:
        """Let `log` write to these, too, and `finish` tell them of the end."""
        self._trackers = trackers

    def points_logged(self) -> int:
        """How many points metrics.jsonl has; a checkpoint that counts them outlives none of them."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return 0
        sync(path)
        return path.read_bytes().count(b"\n")

    def forget_after(self, points: int) -> None:
        """Drop all metrics but the first `points`: the resumed run logs them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            write_lines(path, read_lines(path)[:points])

    def finish(self, result: str = WEIGHTS) -> None:
        """Write DONE, which names the file that the run was for, and tell the trackers."""
        with atomic(self.path / "DONE") as temporary:
            temporary.write_text(result + "\n")
        for tracker in self._trackers:
            tracker.finish()

    @classmethod
    def start(
        cls,
        path: Path,
        config: Config,
        *,
        resume: bool,
        overwrite: bool,
        facts: dict[str, Any] | None = None,
        may_grow: frozenset[str] = frozenset(),
    ) -> "Run":
        """Create the folder, or continue in it. The caller holds its lock.

        Args:
            path: the folder.
            config: the settings of the command, which config.yaml keeps.
            resume: continue the run that is there, if there is one.
            overwrite: replace the run that is there, if there is one.
            facts: what env.json says beside the environment.
            may_grow: settings that may be larger than those of a run that is continued.

        Raises:
            UserError: the folder holds something already and neither flag allows that, its configuration
                differs, or it cannot be written.
        """
        run = cls(path)
        found = run._found()
        continues = run.check(config, resume=resume, overwrite=overwrite, may_grow=may_grow)
        config_text = yaml.safe_dump(config.model_dump(mode="json", exclude=NOT_REPLAYED), sort_keys=False)
        try:
            if not continues:
                with work_folder(path) as new:
                    (new / "config.yaml").write_text(config_text, encoding="utf-8")
                    write_json(new / "env.json", environment() | (facts or {}))
                    replace_run(path, found & RUN_FILES, new)
                return run
            if run.grown(config, may_grow):
                # First: as soon as more is asked for, the run is not finished.
                (path / "DONE").unlink(missing_ok=True)
                with atomic(path / "config.yaml") as temporary:
                    temporary.write_text(config_text, encoding="utf-8")
            if "env.json" not in found:
                write_json(path / "env.json", environment() | (facts or {}))
        except OSError as error:
            raise _unwritable(path, error) from None
        return run

    def grown(self, config: Config, may_grow: frozenset[str]) -> dict[str, Any]:
        """The settings among `may_grow` that `config` makes larger, with their values before."""
        grown = {}
        for name, value in config.model_dump(mode="json", include=set(may_grow)).items():
            before = self.config.get(name)
            if isinstance(before, int) and value > before:
                grown[name] = before
        return grown

    def check(
        self,
        config: Config,
        *,
        resume: bool,
        overwrite: bool,
        undecided: frozenset[str] = frozenset(),
        may_grow: frozenset[str] = frozenset(),
    ) -> bool:
        """Refuse what `start` would refuse, but write nothing: a command asks before it reads its data.

        Args:
            config, resume, overwrite, may_grow: as `start` takes them.
            undecided: settings whose values are known only when the data is read; they are not compared.

        Returns:
            Whether `start` would continue a run that is there.

        Raises:
            UserError: as `start` raises it.
        """
        if resume and overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it; give one of them.")
        found = self._found()
        # A folder of the user's own is refused, since --overwrite would delete files in it. In a run folder
        # the user may keep files of their own.
        strange = foreign_names(found)
        if strange:
            raise UserError(
                f"Folder '{self.path}' holds files that are not a run, such as {min(strange)}; choose "
                "another with --out."
            )
        if "config.yaml" not in found or overwrite:
            return False
        if not resume:
            state = (
                "a finished run; add" if self.finished else "an unfinished run; add --resume to continue it,"
            )
            raise UserError(
                f"Folder '{self.path}' already holds {state} --overwrite to replace it, or choose another "
                "with --out."
            )
        self._check_same(config, undecided | frozenset(self.grown(config, may_grow)))
        return True

    def _found(self) -> set[str]:
        """The names in the folder; none if there is no folder yet."""
        try:
            return {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _check_same(self, config: Config, free: frozenset[str]) -> None:
        """Refuse settings that are not those of the run, those in `free` excepted."""
        before = flat(self.config)
        now = flat(config.model_dump(mode="json", exclude=NOT_REPLAYED | free))
        for name, value in now.items():
            if name in MAY_DIFFER or before.get(name) == value:
                continue
            new = "choose another folder with --out"
            if "init" in type(config).model_fields:
                new += f", where --init {self.path} starts from these weights"
            raise UserError(
                f"Run '{self.path}' was started with {name} = {before.get(name)}, not {value}; resume it "
                f"with the same configuration, replace it with --overwrite, or {new}."
            )

    @classmethod
    def open(cls, path: Path, flag: str = "--run", command: str = "ofa.train") -> "Run":
        """A finished run, to be read by a later stage.

        Args:
            path: the folder.
            flag: the flag that names the run, for the sentence about a wrong one.
            command: the module that makes such a run, for the same sentence.

        Raises:
            UserError: there is no run, or it is not finished.
        """
        run = cls(path)
        if not (path / "config.yaml").exists():
            raise UserError(
                f"'{path}' is not a run folder; train one with python -m {command} --out {path}, or name "
                f"another with {flag}."
            )
        if not run.finished:
            again = f"continue it with python -m {command} --config {path}/config.yaml --out {path} --resume"
            # Only a conversion has a file that it starts from. It has no --resume.
            if "file" in run.config:
                again = "give the command of ofa.convert that began it again"
            raise UserError(f"Run '{path}' is not finished; {again}.")
        return run


def digest(*paths: Path) -> str:
    """SHA-256 of a file, or of several one after the other, in hexadecimal."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            # In parts: a file of weights need not fit in memory twice.
            while content := file.read(2**20):
                found.update(content)
    return found.hexdigest()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"Run folder '{path}' cannot be written ({error.strerror}); choose another with --out.")


def foreign_names(found: set[str]) -> set[str]:
    """The names in a folder that show that it is no run folder; none where it is one, or may become one."""
    if {"config.yaml", "env.json"} <= found:
        return set()
    return {name for name in found - RUN_FILES if not name.startswith(".")}


def selected_files(run: Path) -> dict[str, Path]:
    """The files in selected/ that hold one subnet each, by budget, the smallest budget first."""
    found = {file.stem: file for file in (run / "selected").glob("*.json") if file.name != FRONT}
    return {name: found[name] for name in sorted(found, key=budget_order)}


def environment() -> dict[str, Any]:
    """What produced a result: command, versions, and the state of the source it ran from."""
    return {
        "command": command_line(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "git": _git_state(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git_state() -> dict[str, Any] | None:
    root = Path(__file__).parent.parent
    # An installed package is not a clone. git would then go up and find a repository of the user's around it.
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        # Without locks: `git status` would refresh the index, and if it were killed in that, the user's clone
        # would keep an index.lock and refuse every commit.
        line = ["git", "--no-optional-locks", "-C", str(root), *words]
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
