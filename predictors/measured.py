"""Accuracies of subnets on the validation images: those that were collected, and others as a search asks for them."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from ofa.space import Arch, Codes, Space, decode, encode
from predictors.explore import Costs
from predictors.pairs import Pair


class Candidate(NamedTuple):
    """A measured subnet. A prediction, with its 90% interval, is from before its measurement; none if no predictor chose it."""

    row: Codes
    macs: int
    val_accuracy: float
    source: Literal["pairs", "select"]
    predicted_accuracy: float | None = None
    predicted_std: float | None = None
    predicted_interval: tuple[float, float] | None = None


class Measured:
    """Every subnet of known accuracy, each measured once.

    Args:
        macs: MACs of encoded architectures.
        accuracy: validation accuracy, in [0, 1], of an architecture.
        pairs: what is known already.
    """

    def __init__(self, space: Space, macs: Costs, accuracy: Callable[[Arch], float], pairs: list[Pair]) -> None:
        self.space, self.macs, self._accuracy = space, macs, accuracy
        self._found: dict[bytes, Candidate] = {}
        for pair in pairs:
            row = encode(space, pair.arch)
            self._found[row.tobytes()] = Candidate(row, int(macs(row[None])[0]), pair.val_accuracy, "pairs")

    def __contains__(self, row: Codes) -> bool:
        return row.tobytes() in self._found

    def __len__(self) -> int:
        return len(self._found)

    def measure(self, row: Codes, predicted: float | None = None, std: float | None = None, half_width: float = 0.0) -> float:
        """Measure a new subnet; its accuracy."""
        accuracy = self._accuracy(decode(self.space, row))
        interval = None if predicted is None else (max(predicted - half_width, 0.0), min(predicted + half_width, 1.0))
        self._found[row.tobytes()] = Candidate(row, int(self.macs(row[None])[0]), accuracy, "select", predicted, std, interval)
        return accuracy

    def training_set(self) -> tuple[Codes, NDArray[np.float64]]:
        """(codes, accuracies) of all, in the order in which they became known.

        Raises:
            UserError: there are too few to learn from.
        """
        if len(self) < 10:
            raise UserError(
                f"Only {len(self)} subnets are measured, and a predictor needs at least 10; run python -m predictors.collect first, "
                "or search without a predictor: --explore coarse-to-fine."
            )
        found = self._found.values()
        return np.stack([c.row for c in found]), np.array([c.val_accuracy for c in found])

    def under(self, budget: int) -> list[Candidate]:
        """All with at most `budget` MACs: best first, and the cheaper one at a tie."""
        return sorted((c for c in self._found.values() if c.macs <= budget), key=lambda c: (-c.val_accuracy, c.macs, c.row.tobytes()))

    def front(self) -> list[Candidate]:
        """Those that are better than every cheaper one, fewest MACs first: the measured Pareto front."""
        front: list[Candidate] = []
        for candidate in sorted(self._found.values(), key=lambda c: (c.macs, -c.val_accuracy, c.row.tobytes())):
            if not front or candidate.val_accuracy > front[-1].val_accuracy:
                front.append(candidate)
        return front
