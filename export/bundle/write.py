"""Write a bundle: a folder with one exported network and everything that is needed to use it."""

import csv
import os
import shlex
import shutil
from pathlib import Path

from pydantic import ValidationError

from engine.checkpoint import weights_digest
from engine.command.start import command_line
from engine.config import validate
from engine.errors import UserError, shortened
from engine.outside.names import inside
from engine.run import Run, digest, read_json, versions, write_json
from engine.runs.writing import publish_folder, work_folder
from export.bundle import classify
from export.bundle.card import render_card
from export.bundle.contents import (
    CARD,
    EXAMPLE,
    LABELS,
    MANIFEST,
    Bundle,
    Environment,
    FileTiming,
    Provenance,
    Selection,
    TrainedOn,
    read_bundle,
)
from export.bundle.languages import write_snippets
from export.bundle.samples import write_samples
from export.formats import FORMATS, format_of
from export.manifest import Manifest, read_manifest
from ofa.trained import run_flag
from ofa.tuned import tuned_digest


def write_bundle(run: Run, name: str, paths: list[Path], samples: Path | None = None) -> Path:
    """Write folder `name` beside the files, in one step. A bundle that is there already is replaced.

        export.write_bundle(Run.open(Path("runs/photos")), "600M", [Path("runs/photos/export/600M.onnx")])

    Args:
        run: the finished run that the files come from.
        name: of the network.
        paths: its model files, all in one folder.
        samples: a folder of images to take as samples; none: they are drawn.

    Returns:
        The folder.

    Raises:
        UserError: something else is there, the files are of different trainings, or `samples` is no folder of
            enough images.
    """
    folder = inside(paths[0].parent, name)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"'{folder}' is there and is no bundle; rename or remove it.")
    with work_folder(folder.parent) as work:
        new = work / "new"
        new.mkdir()
        _fill(new, gather(run, name, paths), paths, samples)
        read_bundle(new)  # a bundle that cannot be read must not replace one that can
        publish_folder(new, folder)
    return folder


def _fill(folder: Path, bundle: Bundle, paths: list[Path], samples: Path | None) -> None:
    """Write all files of a bundle; the manifest is the last, since it has the hashes of the others."""
    for path in paths:
        shutil.copyfile(path, folder / path.name)
        for beside in format_of(path).side_files(path):
            if beside.exists():
                shutil.copyfile(beside, folder / beside.name)
    write_samples(folder, list(bundle.files), samples)
    write_snippets(folder, list(bundle.files))
    shutil.copyfile(classify.__file__, folder / EXAMPLE)
    (folder / LABELS).write_text("".join(f"{name}\n" for name in bundle.classes), encoding="utf-8")
    try:
        card = render_card(bundle)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # The parts of a manifest that are free in form were written by export.onnx, or by somebody else.
        raise UserError(
            f"A manifest beside '{paths[0]}' lacks what the model card says, or holds something else there "
            f"({shortened(repr(error))}); export again with python -m export.onnx."
        ) from None
    (folder / CARD).write_text(card, encoding="utf-8")
    hashes = {path.name: digest(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, bundle.model_copy(update={"sha256": hashes}).model_dump(mode="json"))


def gather(run: Run, name: str, paths: list[Path]) -> Bundle:
    """Everything that manifest.json says, without the hashes.

    Raises:
        UserError: a file is damaged, or of another training than the run's.
    """
    files = [read_manifest(path) for path in paths]
    files.sort(key=_plainness)
    env_path, config_path = run.path / "env.json", run.path / "config.yaml"
    first, env = files[0], validate(Environment, read_json(env_path), str(env_path))
    config = validate(TrainedOn, run.config, str(config_path))
    classes, sha256 = first.classes, digest(config_path)
    # Files of an earlier training have the same names, but other weights than the card would describe.
    weights = weights_digest(run.path)
    wanted = classes, first.architecture, sha256, weights
    alike = True
    for file in files:
        of_file = file.classes, file.architecture, getattr(file, "config_sha256", ""), file.weights_sha256
        alike = alike and of_file == wanted
    if classes is None or not (alike and _is_tuned_as_now(run.path, name, first)):
        raise UserError(
            f"The files of '{name}' in {paths[0].parent} are not of this run's network; write them again "
            f"with python -m export.onnx{run_flag(run.path)}."
        )
    data = {"name": config.data.name}
    # Only the name of the folder: a bundle goes to others, and does not name folders of this machine.
    if config.data.path:
        data["path"] = Path(config.data.path).name
    provenance = Provenance(
        commands=_commands(env, files),
        data=data,
        seed=config.seed,
        config_sha256=sha256,
        weights_sha256=weights,
        versions=env.versions,
        git=env.git,
    )
    try:
        return _described(run, name, paths, files, provenance)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(
            f"The manifests beside '{paths[0]}' make no bundle ({shortened(reason)}); export again with "
            f"python -m export.onnx{run_flag(run.path)}."
        ) from None


def _described(
    run: Run, name: str, paths: list[Path], files: list[Manifest], provenance: Provenance
) -> Bundle:
    """The bundle of these files."""
    first, classes = files[0], files[0].classes
    assert classes is not None, "`gather` has refused that"
    return Bundle(
        subnet=name,
        classes=classes,
        files=tuple(files),
        provenance=provenance,
        selection=_selection_of(run.path / "selected" / f"{name}.json", first),
        benchmark=_timings_of(paths[0].parent / "benchmark.csv", files),
        versions=versions(),
    )


def _is_tuned_as_now(run: Path, name: str, file: Manifest) -> bool:
    """Whether the weights that a tuned network was exported with are those in the folder of its tuning."""
    stated = file.architecture.get("tuned", {}).get("weights_sha256")
    return stated is None or tuned_digest(run, name) in (None, stated)


def _plainness(file: Manifest) -> tuple[int, bool, int]:
    """What sorts the plainest file first: its format, then float32, then the shortest name."""
    return FORMATS.index(format_of(Path(file.file))), file.precision != "float32", len(file.file)


def _commands(env: Environment, files: list[Manifest]) -> tuple[str, ...]:
    """The commands that led to the bundle, each once, in order."""
    commands = [env.command]
    commands += [getattr(file, "command", None) for file in files]
    commands.append(command_line())
    found = [portable(command) for command in commands if isinstance(command, str) and command]
    return tuple(dict.fromkeys(found))


def portable(command: str) -> str:
    """A command without the folders of this machine: of an absolute path its last part is left."""
    words = []
    try:
        parts = shlex.split(command)
    except ValueError:  # an open quotation mark: no shell would take it, and nobody knows where words end
        return ""
    for word in parts:
        flag, equals, value = word.rpartition("=")
        words.append(flag + equals + (Path(value).name if os.path.isabs(value) else value))
    return shlex.join(words)


def _selection_of(path: Path, file: Manifest) -> Selection | None:
    """What selection said of this architecture; none if it selected another one since, or none."""
    if not path.is_file():
        return None
    facts = read_json(path)
    if not isinstance(facts, dict) or "arch" not in facts:
        run = run_flag(path.parent.parent)
        raise UserError(f"{path} holds no selected subnet; run python -m predictors.select{run} again.")
    same_weights = facts.get("weights_sha256", file.weights_sha256) == file.weights_sha256
    if facts["arch"] != file.architecture.get("arch") or not same_weights:
        return None
    values = {"constraints": (), "pairs": None, "predicted_accuracy": None, "expected_accuracy": None}
    for key in values.keys() & facts.keys():
        values[key] = facts[key]
    return validate(Selection, values, str(path))


def _timings_of(path: Path, files: list[Manifest]) -> dict[str, FileTiming]:
    """The rows of benchmark.csv that are of these very files.

    Raises:
        UserError: such a row is damaged.
    """
    if not path.is_file():
        return {}
    damaged = UserError(f"{path} is damaged; write it again with python -m export.benchmark, or remove it.")
    try:
        with path.open(newline="", encoding="utf-8") as table:
            # The size tells a file from an older one of the same name.
            rows = {(row.get("file"), row.get("bytes")): row for row in csv.DictReader(table)}
    except (UnicodeDecodeError, csv.Error):
        raise damaged from None
    found = {}
    for file in files:
        row = rows.get((file.file, str(file.bytes)))
        if row is None:
            continue
        try:
            found[file.file] = FileTiming.model_validate(
                {key: row.get(key) for key in FileTiming.model_fields}
            )
        except ValidationError:
            raise damaged from None
    return found
