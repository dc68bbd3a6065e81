"""What was measured on a device, as data: a JSON file with milliseconds of blocks and of whole networks."""

import hashlib
import json
import re
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat

from engine.config import Config, validate
from engine.errors import UserError, shortened
from engine.run import read_json
from engine.statistics import Floats
from ofa.space.codes import Codes, canonical
from ofa.space.space import Space

VERSION = 2  # of the file; another one cannot be read


class Noise(Config):
    """How far two halves of the rounds agree.

    rounds: how often the items were visited.
    reliability: the correlation of the logarithms of both halves, with the correction of Spearman and Brown.
    relative: median difference between the two halves, as a share of the latency.
    """

    rounds: int
    reliability: float | None
    relative: float | None


class TimedNetwork(Config):
    """A measured architecture: its row of codes in hexadecimal, and milliseconds.

    ms: of the median run.
    p90_ms: that nine of ten runs stay under, if it was measured.
    """

    codes: str = Field(pattern="^([0-9a-f]{2})+$", max_length=10_000)
    ms: float = Field(gt=0)
    p90_ms: float | None = Field(None, gt=0)


class LatencyTable(Config):
    """What was measured on a device. Milliseconds of the median run, batch 1 unless `batch` says otherwise.

    blocks: milliseconds by structure (`predictors.latency.kit.structure`) and by the side of the input map.
    others: tables of other devices. Networks of this device are predicted from them if it has no blocks.
    """

    version: Literal[2] = 2
    device: str
    runtime: str
    machine: str = ""
    threads: int
    precision: str = "float32"
    batch: int = 1
    clock: Literal["cpu", "wall", "unknown"]
    space: str
    fingerprint: str
    classes: int
    channels: int
    resolutions: tuple[int, ...] = Field(min_length=1)
    noise: Noise
    blocks: dict[str, dict[int, PositiveFloat]] = Field({})
    networks: tuple[TimedNetwork, ...] = ()
    others: tuple["LatencyTable", ...] = ()


def read_table(path: Path) -> LatencyTable:
    """The table in a JSON file.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    values = read_json(path)
    version = values.get("version") if isinstance(values, dict) else None
    # Before validation, whose error would be about some field that another version does not have.
    if version != VERSION:
        raise UserError(
            f"{path} is not a latency table of version {VERSION}: its version is {version}; "
            "measure again with python -m predictors.measure of this installation."
        )
    return validate(LatencyTable, values, str(path))


def space_fingerprint(space: Space) -> str:
    """A name of the choices of a space that decide latency: spaces of equal fingerprint share tables."""
    # Names, and how weights are stored or normalised, change no latency.
    choices = space.model_dump(mode="json", exclude={"name", "source", "bn_eps", "kernels"})
    return hashlib.blake2b(json.dumps(choices, sort_keys=True).encode(), digest_size=8).hexdigest()


def networks_of(table: LatencyTable) -> tuple[Codes, Floats]:
    """The measured networks as rows of codes (N, F) and milliseconds (N,)."""
    codes = [np.frombuffer(bytes.fromhex(network.codes), np.uint8) for network in table.networks]
    return np.array(codes, np.uint8), np.array([network.ms for network in table.networks])


def row_of_codes(text: str, space: Space) -> Codes | None:
    """The row of codes (F,) that a text writes in hexadecimal; None if no architecture of `space` has it."""
    if re.fullmatch("([0-9a-f]{2})+", text) is None:
        return None
    row = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(row) != len(space.columns) or (row > np.array(space.cardinalities)).any():
        return None
    # Depths come before the blocks that they switch on, and no depth is 0.
    always = [i for i, column in enumerate(space.columns) if column.field not in ("kernel", "expand")]
    if not row[always].all() or not np.array_equal(canonical(space, row[None])[0], row):
        return None
    return row


def check_networks(table: LatencyTable, space: Space, source: str) -> None:
    """Refuse a table with a network that is not of `space`, also among the tables of other devices.

    Raises:
        UserError: there is one.
    """
    for number, network in enumerate(table.networks, start=1):
        if row_of_codes(network.codes, space) is None:
            raise UserError(
                f"{source}: the codes of network {number}, {shortened(network.codes)}, are of no "
                f"architecture of space '{space.name}'; measure again with python -m predictors.measure."
            )
    for other in table.others:
        check_networks(other, space, source)
