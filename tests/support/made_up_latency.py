"""Latency tables of devices that do not exist."""

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.kit import distinct_layers, structure
from predictors.latency.table import LatencyTable, Noise, TimedNetwork, space_fingerprint


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
