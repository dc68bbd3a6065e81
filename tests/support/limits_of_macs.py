"""MACs and parameters of digits' architectures, and a limit of MACs, as searches take them."""

from functools import partial

import numpy as np

from ofa.cost import costs_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import Constraint


def macs_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 10, 1).macs


def params_of(space: Space, rows: Codes) -> np.ndarray:
    return costs_of(space, rows, 10, 1).params


def at_most(space: Space, macs: float) -> list[Constraint]:
    return [Constraint("macs", macs, partial(macs_of, space))]
