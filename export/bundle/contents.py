"""What is in a bundle, as data: the manifest.json of the folder."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.config import validate
from engine.errors import UserError
from engine.run import read_json
from export.manifest import Manifest, digest

# classify.py and the demo page read these by name.
MANIFEST, LABELS, CARD, EXAMPLE = "manifest.json", "labels.txt", "model_card.md", "classify.py"


class Provenance(BaseModel):
    """What made the network.

    Args:
        commands: those that led to the bundle, in order.
        data: name of the data set, and the name of its folder if it is one.
        seed: the seed of the training.
        config_sha256: SHA-256 of its config.yaml, in hexadecimal.
        weights_sha256: SHA-256 of its weights.safetensors, in hexadecimal.
        versions: packages with which the network was trained.
        git: commit of the source at that time, and whether it was changed.
    """

    model_config = ConfigDict(frozen=True)

    commands: tuple[str, ...]
    data: dict[str, Any]
    seed: int
    config_sha256: str
    weights_sha256: str
    versions: dict[str, str]
    git: dict[str, Any] | None


class Selection(BaseModel):
    """How predictors.select selected the network.

    Args:
        constraints: the limits.
        pairs: subnets that the predictor had learned from.
        predicted_accuracy: the accuracy that the predictor expected, in [0, 1].
    """

    model_config = ConfigDict(frozen=True)

    constraints: tuple[dict[str, Any], ...]
    pairs: int | None
    predicted_accuracy: float | None


class FileTiming(BaseModel):
    """What export.benchmark measured of a file: milliseconds of one image in wall time, and on what.

    noise is how far the medians of even and odd rounds differ, as a share.
    """

    model_config = ConfigDict(frozen=True)

    wall_p50: float
    wall_p90: float
    noise: float
    threads: int
    runtime: str
    machine: str


class Bundle(BaseModel):
    """One network as files, the plainest first: classify.py takes the first file that it can run.

    sha256 is that of every other file in the folder, by name.
    """

    model_config = ConfigDict(frozen=True)

    subnet: str
    classes: tuple[str, ...]
    files: tuple[Manifest, ...]
    provenance: Provenance
    selection: Selection | None
    benchmark: dict[str, FileTiming]
    versions: dict[str, str]
    sha256: dict[str, str] = {}


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, if every file is what it was when the bundle was made.

    Raises:
        UserError: there is none, or a file is missing or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"Folder '{folder}' is no bundle (it has no {MANIFEST}); make one with python -m export.bundle."
        )
    bundle = validate(Bundle, read_json(folder / MANIFEST), str(folder / MANIFEST))
    for name, expected in bundle.sha256.items():
        # A manifest from elsewhere must not make anybody read files outside of its folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"Bundle '{folder}' lacks '{name}'; copy the whole folder again.")
        if digest(folder / name) != expected:
            raise UserError(
                f"'{folder / name}' is not what was bundled (SHA-256 differs); copy it again, or bundle "
                "again."
            )
    return bundle
