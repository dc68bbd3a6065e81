"""A search that changes any two choices of an architecture at once."""

from collections.abc import Sequence

import numpy as np

from ofa.space.codes import Codes, canonical
from ofa.space.space import Space
from predictors.search.constraints import Constraint, ScoreFn
from predictors.search.pool import Pool, scored, unseen

STEPS = 4  # more did not help (docs/log.md)


def improve_pairs(
    space: Space, score: ScoreFn, constraints: Sequence[Constraint], pool: Pool, steps: int = STEPS
) -> Pool:
    """Improve a pool by changing any two choices of its best architectures at once.

    Each step takes the best architecture whose pairs were not tried yet. Under a limit the best architecture
    uses all of it. To gain in one choice it must save in another, so single changes do not help.

    Args:
        space: what to search.
        score: of encoded architectures; higher is better.
        constraints: what an architecture has to keep; an empty list for no limit.
        pool: where to start.
        steps: how many architectures have all their pairs tried.

    Returns:
        The best of the pool and of all changed architectures; as many as the pool had.
    """
    # Each value of each column, in a row: its column and its code. A pair of them is one change.
    columns = np.repeat(np.arange(len(space.cardinalities)), space.cardinalities)
    codes = np.concatenate([np.arange(1, n + 1) for n in space.cardinalities])
    first, second = np.triu_indices(len(codes))  # with the diagonal, which changes one choice only
    seen = {row.tobytes() for row in pool.rows}
    tried = set[bytes]()
    for _ in range(steps):
        best = _first_untried(pool.rows, tried)
        if best is None:
            break
        tried.add(best.tobytes())
        changed = np.repeat(best[None], len(first), axis=0)
        for value in (first, second):
            changed[np.arange(len(first)), columns[value]] = codes[value]
        # A change of depth may have switched blocks on or off: `canonical` makes their choices valid.
        fresh = unseen(canonical(space, changed), seen)
        pool = pool.join(scored(fresh, score, constraints)).best(len(pool.rows))
    return pool


def _first_untried(rows: Codes, tried: set[bytes]) -> Codes | None:
    for row in rows:
        if row.tobytes() not in tried:
            return row
    return None
