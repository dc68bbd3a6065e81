"""Put what belongs to one exported network into a folder that needs nothing else: files, labels, example,
manifest and model card."""

import csv
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from engine.command.cli import Command, main
from engine.errors import UserError
from engine.run import Run, read_json, versions, write_json
from export.bundle import classify
from export.bundle.card import render
from export.bundle.contents import (
    CARD,
    EXAMPLE,
    LABELS,
    MANIFEST,
    Bundle,
    Provenance,
    Selection,
    Timed,
    read_bundle,
)
from export.graph import OPERATORS
from export.manifest import Manifest, digest, exported, read_manifest
from ofa.trained import DEFAULT_RUN


class MakeBundle(Command):
    """Make a folder of every exported network: export/NAME/ with its model files, labels.txt, manifest.json,
    model_card.md and classify.py.

    classify.py runs the files with nothing but onnxruntime, numpy and pillow: python classify.py IMAGE. The
    model card says what the manifest says, in sentences. Times of python -m export.benchmark, where it was
    run before, are included.

    examples:
      python -m export.bundle                        every network in runs/supernet/export
      python -m export.bundle --run runs/photos --selected 600M
    """

    run: Path = Field(DEFAULT_RUN, description="folder of a finished run with exported files")
    selected: str | None = Field(
        None, description="only this budget, or whatever the file is called; none: all"
    )

    def execute(self) -> int:
        """Write the folders."""
        run = Run.open(self.run)
        networks: dict[str, list[Path]] = {}
        for path in exported(self.run / "export"):
            networks.setdefault(read_manifest(path).subnet, []).append(path)
        if self.selected is not None and self.selected not in networks:
            raise UserError(
                f"Run '{self.run}' has no exported network '{self.selected}'; it has {', '.join(networks)}."
            )
        chosen = [self.selected] if self.selected is not None else list(networks)
        for name in chosen:
            folder = write_bundle(run, name, networks[name])
            print(f"{folder}: {', '.join(sorted(os.listdir(folder)))}")
        print(f"next: python -m export.demo {self.run / 'export' / chosen[0]}")
        return 0


def write_bundle(run: Run, name: str, paths: list[Path]) -> Path:
    """Folder `name` beside the files, in one step: one that is there already is replaced, if it is a bundle.

    Raises:
        UserError: something else is there, or the files are of different trainings.
    """
    if Path(name).name != name:
        raise UserError(
            f"A manifest beside '{paths[0]}' calls its network '{name}', which is no plain name; export it "
            "again."
        )
    folder = paths[0].parent / name
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"'{folder}' is there and is no bundle; rename or remove it.")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bundle-") as work:
        new = Path(work) / "new"
        new.mkdir()
        fill(new, gather(run, name, paths), paths)
        read_bundle(new)
        if folder.exists():
            folder.replace(Path(work) / "old")
        new.replace(folder)
    return folder


def fill(folder: Path, bundle: Bundle, paths: list[Path]) -> None:
    """All files, the manifest last."""
    for path in paths:
        shutil.copyfile(path, folder / path.name)
        operators = path.with_suffix(OPERATORS)
        if operators.exists():
            shutil.copyfile(operators, folder / operators.name)
    shutil.copyfile(classify.__file__, folder / EXAMPLE)
    (folder / LABELS).write_text("".join(f"{name}\n" for name in bundle.classes), encoding="utf-8")
    (folder / CARD).write_text(render(bundle), encoding="utf-8")
    hashes = {path.name: digest(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, bundle.model_copy(update={"sha256": hashes}).model_dump(mode="json"))


def gather(run: Run, name: str, paths: list[Path]) -> Bundle:
    """Everything that manifest.json says, but for the hashes."""
    files = [read_manifest(path) for path in paths]
    files.sort(
        key=lambda file: (file.file.endswith(".ort"), file.precision != "float32", len(file.file))
    )  # the plainest first
    first, config, env = files[0], run.config, read_json(run.path / "env.json")
    classes, sha256 = first.classes, digest(run.path / "config.yaml")
    alike = all(
        (f.classes, f.architecture, getattr(f, "config_sha256", "")) == (classes, first.architecture, sha256)
        for f in files
    )
    if classes is None or not alike:
        raise UserError(
            f"The files of '{name}' in {paths[0].parent} are not of this run's network; write them again "
            "with export.onnx."
        )
    commands = [
        env.get("command"),
        *(getattr(file, "command", None) for file in files),
        shlex.join(["python", *sys.orig_argv[1:]]),
    ]
    data = {
        key: Path(value).name if key == "path" else value
        for key, value in config["data"].items()
        if key in ("name", "path") and value
    }
    made = Provenance(
        commands=tuple(dict.fromkeys(portable(command) for command in commands if command)),
        data=data,
        seed=config["seed"],
        config_sha256=sha256,
        versions=env["versions"],
        git=env["git"],
    )
    return Bundle(
        subnet=name,
        classes=classes,
        files=tuple(files),
        provenance=made,
        selection=selection_of(run.path / "selected" / f"{name}.json", first),
        benchmark=timings_of(paths[0].parent / "benchmark.csv", files),
        versions=versions(),
    )


def portable(command: str) -> str:
    """A command without the folders of this machine: of an absolute path its last part is left."""
    words = [word.rpartition("=") for word in shlex.split(command)]
    return shlex.join(
        key + sign + (Path(value).name if os.path.isabs(value) else value) for key, sign, value in words
    )


def selection_of(path: Path, file: Manifest) -> Selection | None:
    """What selection said of this architecture; nothing if it chose another one since, or none."""
    if not path.is_file():
        return None
    facts: dict[str, Any] = read_json(path)
    if facts["arch"] != file.architecture.get("arch"):
        return None
    return Selection(
        constraints=tuple(facts.get("constraints", ())),
        pairs=facts.get("pairs"),
        predicted_accuracy=facts.get("predicted_accuracy"),
    )


def timings_of(path: Path, files: list[Manifest]) -> dict[str, Timed]:
    """The rows of benchmark.csv that are of these very files."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = {(row.get("file"), row.get("bytes")): row for row in csv.DictReader(file)}
    found = {f.file: rows[f.file, str(f.bytes)] for f in files if (f.file, str(f.bytes)) in rows}
    try:
        return {
            name: Timed.model_validate({key: row.get(key) for key in Timed.model_fields})
            for name, row in found.items()
        }
    except ValidationError:
        raise UserError(
            f"{path} is damaged; write it again with python -m export.benchmark, or remove it."
        ) from None


if __name__ == "__main__":
    main(MakeBundle)
