"""What is in a bundle, as data: the manifest.json of the folder."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from engine.config import validate
from engine.errors import UserError
from engine.outside.names import ClassNames, PlainName, inside
from engine.run import digest, read_json
from export.manifest import Manifest

# classify.py and the demo page read these by name. The card is README.md since model hubs show that.
MANIFEST, LABELS, CARD, EXAMPLE = "manifest.json", "labels.txt", "README.md", "classify.py"


class GitState(BaseModel):
    """The state of the source that a command ran from: its commit, and whether it was changed."""

    model_config = ConfigDict(frozen=True)

    commit: str | None
    dirty: bool


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
    data: dict[str, str]
    seed: int
    config_sha256: str
    weights_sha256: str
    versions: dict[str, str]
    git: GitState | None


class Environment(BaseModel):
    """The part of a run's env.json that a bundle tells on."""

    model_config = ConfigDict(frozen=True)

    command: str | None = None
    versions: dict[str, str]
    git: GitState | None


class DataSource(BaseModel):
    """Name and place of a run's images."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str | None = None


class TrainedOn(BaseModel):
    """The part of a run's config.yaml that a bundle tells on."""

    model_config = ConfigDict(frozen=True)

    data: DataSource
    seed: int


class Limit(BaseModel):
    """A limit that a subnet was selected for. value: what the subnet has."""

    model_config = ConfigDict(frozen=True)

    name: str
    limit: FiniteFloat
    value: FiniteFloat
    unit: str


class Selection(BaseModel):
    """How predictors.select selected the network.

    Args:
        constraints: the limits.
        pairs: subnets that the predictor had learned from.
        predicted_accuracy: what the predictor predicted before the subnet was measured, in [0, 1].
        expected_accuracy: what select expects on other images of the same kind, in [0, 1].
    """

    model_config = ConfigDict(frozen=True)

    constraints: tuple[Limit, ...]
    pairs: int | None
    predicted_accuracy: FiniteFloat | None
    expected_accuracy: FiniteFloat | None = None


Side = Annotated[int, Field(ge=1, le=8192)]  # of an image in pixels: memory is taken for so many


class Preparation(BaseModel):
    """What classify.py and the demo page read of a file's `preprocessing`."""

    model_config = ConfigDict(frozen=True)

    image_size: Side | None = None
    center_crop: Side | None = None
    resize_shorter_side: Side | None = None
    resize_interpolation: str = "bicubic"
    resize: tuple[Side, Side]
    channels: Literal["RGB", "gray"]
    mean: tuple[FiniteFloat, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.center_crop is None and self.image_size is None:
            raise ValueError("the preprocessing has neither center_crop nor image_size")
        channels = 3 if self.channels == "RGB" else 1
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std must have a number for each of {channels} channels")
        if self.resize_interpolation.split(",")[0] not in ("bicubic", "bilinear"):
            raise ValueError("resize_interpolation must be bicubic or bilinear")
        return self


class FileTiming(BaseModel):
    """What export.benchmark measured of a file: milliseconds of one image in wall time, and on what.

    noise is how far the medians of even and odd rounds differ, as a share.
    """

    model_config = ConfigDict(frozen=True)

    wall_p50: NonNegativeFloat
    wall_p90: NonNegativeFloat
    noise: NonNegativeFloat
    threads: int
    runtime: str
    machine: str


class Bundle(BaseModel):
    """One network as files, the plainest first: classify.py takes the first file that it can run.

    sha256 is that of every other file in the folder, by name.
    """

    model_config = ConfigDict(frozen=True)

    subnet: PlainName
    classes: ClassNames
    files: tuple[Manifest, ...]
    provenance: Provenance
    selection: Selection | None
    benchmark: dict[PlainName, FileTiming]
    versions: dict[str, str]
    sha256: dict[PlainName, str] = {}

    @model_validator(mode="after")
    def _can_be_prepared(self) -> Self:
        for file in self.files:
            # Not in `Manifest`: files that are no part of a bundle may be prepared in any way.
            Preparation.model_validate(file.preprocessing or {})
        return self


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
        if not inside(folder, name).is_file():
            raise UserError(f"Bundle '{folder}' lacks '{name}'; copy the whole folder again.")
        if digest(folder / name) != expected:
            raise UserError(
                f"'{folder / name}' is not what was bundled (SHA-256 differs); copy it again, or bundle "
                "again."
            )
    # What is not hashed could be anything, and the demo serves and runs every file of the list.
    for file in bundle.files:
        if file.file not in bundle.sha256:
            raise UserError(
                f"'{folder / MANIFEST}' has no SHA-256 of '{file.file}', so nobody can tell whether it is "
                "what was bundled; bundle again."
            )
        # classify.py shows the names of the file, and the page those of the bundle.
        if file.classes != bundle.classes:
            raise UserError(
                f"'{folder / MANIFEST}' gives '{file.file}' other classes than the bundle; bundle again."
            )
    return bundle
