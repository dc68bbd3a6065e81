"""Spaces that are small enough to try everything, and a score whose effects add up over stages."""

from itertools import product

import numpy as np

from engine.statistics import Floats
from ofa.space.codes import Codes, canonical, thermometer
from ofa.space.space import Space


def small(granularity: str) -> Space:
    """Two elastic stages with depths, and kernels and expansions per stage or per block."""
    stage = {"depth": (1, 2, 3), "kernel": (3, 5), "expand": (2, 3), "stride": 2}
    stages = (
        {**stage, "width": (8, 16)},
        {**stage, "width": (8, 16, 24), "depth": (2, 3) if granularity == "stage" else (1, 2)},
    )
    stem, head = {"width": (4, 8), "stride": 1}, {"width": (16, 32), "expand": 2}
    return Space.model_validate(
        {
            "name": "small",
            "resolution": (8, 12),
            "granularity": granularity,
            "stem": stem,
            "stages": stages,
            "head": head,
        }
    )


def all_of(space: Space) -> Codes:
    """Every architecture once; blocks that are not there have no choices."""
    codes = np.array(list(product(*(range(1, n + 1) for n in space.cardinalities))), np.uint8)
    found = np.unique(canonical(space, codes), axis=0)
    assert len(found) == space.size()
    return found


def additive_over_stages(space: Space, rows: Codes) -> Floats:
    """Effects of all choices; in a stage, of depth and kernel together."""
    rng = np.random.default_rng(5)
    X = thermometer(space, rows)
    total = X @ rng.normal(0.5, 1, X.shape[1])
    for i in range(len(space.stages)):
        depth, kernel = (
            rows[:, space.column_index[field, space.slot(i, 0) if field == "kernel" else i]]
            for field in ("depth", "kernel")
        )
        total += 0.3 * depth.astype(float) * kernel
    return total
