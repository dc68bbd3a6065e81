"""What is in a bundle, as data: the manifest.json that describes every file of the folder and where the
network comes from."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.config import validate
from engine.errors import UserError
from engine.run import read_json
from export.manifest import Manifest, digest

MANIFEST, LABELS, CARD, EXAMPLE = "manifest.json", "labels.txt", "model_card.md", "classify.py"


class Provenance(BaseModel):
    """What made the network: commands in order, data, seed, hash of config.yaml, versions and source state of
    the training."""

    model_config = ConfigDict(frozen=True)

    commands: tuple[str, ...]
    data: dict[str, Any]
    seed: int
    config_sha256: str
    versions: dict[str, str]
    git: dict[str, Any] | None


class Selection(BaseModel):
    """How predictors.select came to it: limits, the predictor's pairs, and what was expected of it."""

    model_config = ConfigDict(frozen=True)

    constraints: tuple[dict[str, Any], ...]
    pairs: int | None
    predicted_accuracy: float | None


class Timed(BaseModel):
    """What export.benchmark measured of a file: milliseconds of one image in wall time, and on what."""

    model_config = ConfigDict(frozen=True)

    wall_p50: float
    wall_p90: float
    noise: float
    threads: int
    runtime: str
    machine: str


class Bundle(BaseModel):
    """One network as files, the first of which is the one that examples take. sha256: of every other file in
    the folder, by name."""

    model_config = ConfigDict(frozen=True)

    subnet: str
    classes: tuple[str, ...]
    files: tuple[Manifest, ...]
    provenance: Provenance
    selection: Selection | None
    benchmark: dict[str, Timed]
    versions: dict[str, str]
    sha256: dict[str, str] = {}


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, if every file is what it was.

    Raises:
        UserError: there is none, or a file is missing or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"Folder '{folder}' is no bundle (it has no {MANIFEST}); make one with python -m export.bundle."
        )
    bundle = validate(Bundle, read_json(folder / MANIFEST), str(folder / MANIFEST))
    for name, expected in bundle.sha256.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"Bundle '{folder}' lacks '{name}'; copy the whole folder again.")
        if digest(folder / name) != expected:
            raise UserError(
                f"'{folder / name}' is not what was bundled (SHA-256 differs); copy it again, or bundle "
                "again."
            )
    return bundle
