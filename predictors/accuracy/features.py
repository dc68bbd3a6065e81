"""What accuracy predictors see of an architecture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofa.space.codes import Codes, thermometer
from ofa.space.space import Space


def features(space: Space, codes_NF: Codes) -> NDArray[np.float32]:
    """Features (N, D) of encoded architectures (N, F).

    They are the thermometer code, then each choice as an ordinal, then the kernels and expansions summed over
    the active blocks of each stage. Architectures that differ little share most of the thermometer code, in
    which every step between two choices may have an effect of its own. In the other features all steps of a
    choice have the same effect, which is easier to learn from few pairs (measured in docs/log.md).

    No column reads two stages, so whatever adds the columns up, as ridge regression does, is additive over
    the stages. The dynamic programme of selection is exact for such functions.
    """
    parts: list[NDArray[Any]] = [thermometer(space, codes_NF), codes_NF, _stage_sums(space, codes_NF)]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _stage_sums(space: Space, codes_NF: Codes) -> NDArray[np.float64]:
    """Kernels and expansions of the active blocks of each stage, summed: (N, 2 x stages).

    The codes, which number the choices from 1, are summed and divided by the greatest depth of the stage.
    """
    sums = []
    for i, stage in enumerate(space.stages):
        depth_N = np.array(stage.depth)[codes_NF[:, space.column_index["depth", i]] - 1]
        for field in ("kernel", "expand"):
            if space.granularity == "stage":
                # One choice holds for all blocks of the stage.
                total_N = depth_N * codes_NF[:, space.column_index[field, i]]
            else:
                # Codes of inactive blocks are 0.
                first = space.column_index[field, space.slot(i, 0)]
                total_N = codes_NF[:, first : first + stage.depth[-1]].sum(axis=1)
            sums.append(total_N / stage.depth[-1])
    return np.stack(sums, axis=1)
