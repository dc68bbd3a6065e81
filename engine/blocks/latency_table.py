"""What was measured on a device, as data: a JSON file with milliseconds of blocks and of whole networks.

`python -m predictors.measure` writes it. Predictors of latency read it, and searches for chains of blocks.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat

from engine.blocks.layers import LayerSpec, structure
from engine.config import Config, validate
from engine.errors import UserError
from engine.run import read_json

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


def layer_ms(table: LatencyTable, layer: LayerSpec) -> float:
    """Milliseconds of a layer, linear in the area of its map between measured sizes, NaN outside of them.

    Raises:
        UserError: the table does not know the layer.
    """
    name = structure(layer)
    if name not in table.blocks:
        raise UserError(
            f"The latency table of '{table.device}' lacks block {name}; measure again with the same space."
        )
    measured = sorted(table.blocks[name].items())
    areas = [size**2 for size, _ in measured]
    ms = [value for _, value in measured]
    return float(np.interp(layer.size**2, areas, ms, left=np.nan, right=np.nan))
