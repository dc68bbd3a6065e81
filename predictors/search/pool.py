"""A pool of architectures with scores, from which searches take the best."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.statistics import Floats
from ofa.space.codes import Codes
from predictors.search.constraints import Constraint, ScoreFn, excess


class Pool(NamedTuple):
    """N different architectures.

    rows: their codes (N, F).
    scores: (N,); minus infinity for those over a limit.
    over: (N,) by how much they are over the limits (`excess`); 0 for those that keep all.
    """

    rows: Codes
    scores: Floats
    over: Floats

    def take(self, which: NDArray[Any]) -> "Pool":
        """The architectures at some indices, or where a mask is true."""
        return Pool(self.rows[which], self.scores[which], self.over[which])

    def join(self, other: "Pool") -> "Pool":
        """These architectures and then those of `other`."""
        return Pool(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.over, other.over]),
        )

    def best(self, count: int) -> "Pool":
        """At most `count` of them: those under all limits, best first, then those nearest to the limits."""
        # Sorted by excess first: all that keep the limits have none, so among them the score decides.
        return self.take(np.lexsort((-self.scores, self.over))[:count])

    def spread(self, count: int, columns: Sequence[int]) -> "Pool":
        """About `count` of them: half are the best, the other half the best of every choice in `columns`.

        However far the others are ahead, every choice of such a column keeps its own best architectures. So a
        search that takes its parents from here can never lose a choice.

        Args:
            count: how many, where there are enough.
            columns: the columns whose choices keep a share each; with none the best `count` are returned.
        """
        if not columns:
            return self.best(count)
        order = np.lexsort((-self.scores, self.over))
        kept = np.zeros(len(order), np.bool_)  # by place in the order
        kept[: count // 2] = True
        choices = [(c, code) for c in columns for code in np.unique(self.rows[:, c])]
        share = max(count // 2 // max(len(choices), 1), 1)
        for c, code in choices:
            kept[np.flatnonzero(self.rows[order, c] == code)[:share]] = True
        return self.take(order[kept])


def scored(rows: Codes, score: ScoreFn, constraints: Sequence[Constraint]) -> Pool:
    """Architectures (N, F) as a pool."""
    over = excess(constraints, rows)
    # Costs are cheap and scores are not, so only architectures under all limits are scored.
    scores, inside = np.full(len(rows), -np.inf), over == 0
    if inside.any():
        scores[inside] = score(rows[inside])
    return Pool(rows, scores, over)


def unseen(rows: Codes, seen: set[bytes]) -> Codes:
    """Those of `rows` that are not in `seen`, each once; they are added to it."""
    index_of = {row.tobytes(): i for i, row in enumerate(rows)}
    fresh = [i for key, i in index_of.items() if key not in seen]
    seen.update(index_of)
    return rows[fresh]
