"""What accuracy predictors see of an architecture."""

import numpy as np
from numpy.typing import NDArray

from ofa.space.codes import Codes, thermometer
from ofa.space.space import Space


def features(space: Space, codes_NF: Codes) -> NDArray[np.float32]:
    """(N, D) thermometer code, then each choice as an ordinal, then kernels and expansions summed over a
    stage's active blocks.

    Neighbours of an architecture share most of the first, which lets every step between two choices count
    differently; the others say that steps are alike, which few pairs teach best. No column reads two stages,
    so whatever adds the columns up, as ridge does, is additive over the stages.
    """
    return np.concatenate(
        [thermometer(space, codes_NF), codes_NF, _sums(space, codes_NF)], axis=1, dtype=np.float32
    )


def _sums(space: Space, codes_NF: Codes) -> NDArray[np.float64]:
    """(N, 2 x stages) codes of kernels and expansions of the active blocks of each stage, as a share of the
    deepest stage's blocks."""
    sums = []
    for i, stage in enumerate(space.stages):
        depth_N = np.array(stage.depth)[codes_NF[:, space.column_index["depth", i]] - 1]
        for field in ("kernel", "expand"):
            if space.granularity == "stage":
                total_N = depth_N * codes_NF[:, space.column_index[field, i]]
            else:
                first = space.column_index[field, space.slot(i, 0)]
                total_N = codes_NF[:, first : first + stage.depth[-1]].sum(axis=1)
            sums.append(total_N / stage.depth[-1])
    return np.stack(sums, axis=1)
