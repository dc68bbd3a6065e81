"""Random subnets of the same MACs as a selected one: what a choice without a search would give."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ofa.space.codes import Codes, cross, mutate, sample_codes
from ofa.space.space import Space
from predictors.search.pool import unseen

SAME_MACS = 0.05  # a difference of so much, as a share, counts as the same MACs
FEWEST_RIVALS = 5  # with fewer the report compares nothing
POOL = 200_000  # uniform architectures, among which those of the same MACs are looked for first
# The walk towards sizes that uniform samples rarely have, such as those near the smallest subnet.
STEPS, WALKERS, CHANGED = 60, 1_000, 0.1
SPREAD = 20  # so many times more are found than are taken, so that few of them descend from each other


def random_rivals(
    space: Space,
    macs: Callable[[Codes], NDArray[np.int64]],
    row: Codes,
    count: int,
    rng: np.random.Generator,
) -> Codes:
    """Different random architectures whose MACs are within 5% of those of `row`, without itself.

    They are uniform samples of the space as long as enough of those have the size. Else a random walk looks
    for more: the architectures nearest to the size are mutated and crossed, and all of them that have the
    size are equally good.

    Args:
        space: of the architectures.
        macs: of encoded architectures (N, F): (N,).
        row: the encoded architecture (F,).
        count: how many are wanted.
        rng: draws.

    Returns:
        (at most count, F): fewer where the space has no more, or so few that the walk does not meet them.
    """
    wanted = int(macs(row[None])[0])
    seen = {row.tobytes()}
    rows = unseen(rng.permutation(sample_codes(space, POOL, rng)), seen)
    away = np.abs(macs(rows) / wanted - 1)
    found = rows[away <= SAME_MACS]
    if len(found) < count:
        found = _walk(space, macs, wanted, rows, seen, count, rng)
    return rng.permutation(found)[:count]


def _walk(
    space: Space,
    macs: Callable[[Codes], NDArray[np.int64]],
    wanted: int,
    rows: Codes,
    seen: set[bytes],
    count: int,
    rng: np.random.Generator,
) -> Codes:
    """Walk from `rows` to architectures of the wanted size; all that the walk met."""

    def nearest(rows: Codes) -> tuple[Codes, int]:
        """The rows nearest to the size, and how many have it. Those that have it count as equally near."""
        away = np.maximum(np.abs(macs(rows) / wanted - 1), SAME_MACS)
        order = np.argsort(away, kind="stable")
        return rows[order], int((away <= SAME_MACS).sum())

    rows, there = nearest(rows)
    for _ in range(STEPS):
        if there >= SPREAD * count:
            break
        # Parents are drawn among all that have the size, or are nearest to it.
        first, second = rows[rng.integers(0, min(len(rows), max(there, WALKERS)), (2, WALKERS))]
        children = np.concatenate([mutate(space, first, CHANGED, rng), cross(space, first, second, rng)])
        rows, there = nearest(np.concatenate([rows[: max(there, WALKERS)], unseen(children, seen)]))
    return rows[:there]
