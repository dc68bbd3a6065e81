"""Latency tables of devices that do not exist."""

import json
from pathlib import Path

import numpy as np

from engine.blocks.latency_table import LatencyTable, Noise, TimedNetwork
from engine.blocks.layers import structure
from engine.statistics import Floats
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.latency.kit import distinct_layers
from predictors.latency.model import LatencyModel
from predictors.latency.table import space_fingerprint


def made_up(space: Space, codes: Codes, ms: Floats, blocks: dict[str, dict[int, float]]) -> LatencyTable:
    return LatencyTable(
        device="made up",
        runtime="none",
        threads=1,
        clock="cpu",
        space=space.name,
        fingerprint=space_fingerprint(space),
        classes=5,
        channels=1,
        resolutions=space.resolution,
        noise=Noise(rounds=2, reliability=1, relative=0),
        blocks=blocks,
        networks=tuple(
            TimedNetwork(codes=row.tobytes().hex(), ms=float(y)) for row, y in zip(codes, ms, strict=True)
        ),
    )


def made_up_blocks(space: Space, rng: np.random.Generator, classes: int = 5) -> dict[str, dict[int, float]]:
    blocks: dict[str, dict[int, float]] = {}
    for piece in distinct_layers(space, classes, 1):
        blocks.setdefault(structure(piece), {})[piece.size] = float(rng.uniform(0.1, 1)) * piece.size**2 / 64
    return blocks


def partial_device(space: Space, networks: int = 0, classes: int = 10, **facts: object) -> LatencyTable:
    """A device that takes 0.01 ms for a layer and 0.001 ms for each pixel of a side. It knows 12 px only."""
    part = Space.model_validate(space.model_dump() | {"resolution": (12,)})
    blocks = {}
    for name, sizes in made_up_blocks(part, np.random.default_rng(0), classes).items():
        blocks[name] = {size: 0.01 + 0.001 * size for size in sizes}
    codes = sample_codes(space, networks, np.random.default_rng(0))
    codes[:, 0] = 2
    table = made_up(space, codes, np.ones(networks), blocks)
    table = table.model_copy(update={"resolutions": (12,), "classes": classes} | facts)
    if networks:
        ms = LatencyModel(table.model_copy(update={"networks": ()}), space).predict(codes)
        # Nine networks of ten take 5% more than the sum of their blocks, and one takes 20% more.
        late = np.where(np.arange(networks) % 10, 1.05, 1.2)
        timed_networks = made_up(space, codes, ms * late, {}).networks
        timed_networks = tuple(n.model_copy(update={"p90_ms": 1.5 * n.ms}) for n in timed_networks)
        table = table.model_copy(update={"networks": timed_networks})
    return table


def written_table(table: LatencyTable, folder: Path) -> str:
    path = folder / "device.json"
    path.write_text(json.dumps(table.model_dump(mode="json")))
    return str(path)
