"""Accuracies of subnets on the validation images: those that were collected, and others as a search asks for
them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from ofa.space.codes import Codes, encode
from ofa.space.space import Space
from predictors.accuracy.pairs import Pair
from predictors.search.constraints import Constraint, Costs, fits, use
from predictors.search.evolution import undominated


class Prediction(NamedTuple):
    """What a predictor says of an accuracy before it is measured."""

    predicted_accuracy: float
    predicted_std: float
    interval: tuple[float, float] | None = None


Ask = Callable[[Sequence[Codes], Sequence[Prediction | None]], Sequence[float]]


class Candidate(NamedTuple):
    """A measured subnet. There is no prediction if no predictor chose it."""

    row: Codes
    val_accuracy: float
    source: Literal["pairs", "select"]
    prediction: Prediction | None = None


class Measured:
    """Every subnet of known accuracy, each measured once.

    Args:
        images: validation images, which say how exact an accuracy is.
        pairs: what is known already.
    """

    def __init__(self, space: Space, images: int, pairs: Sequence[Pair]) -> None:
        self.space, self.images = space, images
        self._found: dict[bytes, Candidate] = {}
        for pair in pairs:
            self.add(encode(space, pair.arch), pair.val_accuracy, "pairs")

    def __contains__(self, row: Codes) -> bool:
        return row.tobytes() in self._found

    def __len__(self) -> int:
        return len(self._found)

    def add(
        self,
        row: Codes,
        accuracy: float,
        source: Literal["pairs", "select"],
        prediction: Prediction | None = None,
    ) -> None:
        """Keep an accuracy, unless the subnet is known."""
        self._found.setdefault(row.tobytes(), Candidate(row, accuracy, source, prediction))

    def measure(
        self, rows: Sequence[Codes], ask: Ask, predictions: Sequence[Prediction | None] | None = None
    ) -> list[float]:
        """Measure new subnets; their accuracies."""
        said = [None] * len(rows) if predictions is None else predictions
        accuracies = list(ask(rows, said))
        for row, accuracy, prediction in zip(rows, accuracies, said, strict=True):
            self.add(row, accuracy, "select", prediction)
        return accuracies

    def training_set(self) -> tuple[Codes, NDArray[np.float64]]:
        """(codes, accuracies) of all, in the order in which they became known.

        Raises:
            UserError: there are too few to learn from.
        """
        if len(self) < 10:
            raise UserError(
                f"Only {len(self)} subnets are measured, and a predictor needs at least 10; run python -m "
                "predictors.collect first, "
                "or search without a predictor: --explore coarse-to-fine."
            )
        found = self._found.values()
        return np.stack([c.row for c in found]), np.array([c.val_accuracy for c in found])

    def under(self, constraints: Sequence[Constraint]) -> list[Candidate]:
        """All under every limit, best first."""
        if not self._found:
            return []
        found = list(self._found.values())
        rows = np.stack([c.row for c in found])
        order = np.lexsort((use(constraints, rows), np.array([-c.val_accuracy for c in found])))
        inside = fits(constraints, rows)
        return [found[i] for i in order if inside[i]]

    def noise(self, accuracy: float) -> float:
        """Standard error of an accuracy: of as many images, drawn anew, another share would be right."""
        return float(np.sqrt(accuracy * (1 - accuracy) / self.images))

    def choose(self, constraints: Sequence[Constraint], errors: float = 1.0) -> Candidate | None:
        """The cheapest of those that tie with the best: whose accuracy is within so many standard errors of
        the highest."""
        found = self.under(constraints)
        if not found:
            return None
        ties = [
            c
            for c in found
            if c.val_accuracy >= found[0].val_accuracy - errors * self.noise(found[0].val_accuracy)
        ]
        return ties[int(use(constraints, np.stack([c.row for c in ties])).argmin())]

    def front(self, costs: Mapping[str, Costs], constraints: Sequence[Constraint]) -> list[Candidate]:
        """Those under every limit that none beats in accuracy and all of `costs`, cheapest first: the
        measured Pareto front."""
        found = self.under(constraints)
        if not found:
            return []
        rows = np.stack([c.row for c in found])
        costs_NK = np.stack([cost(rows) for cost in costs.values()], axis=1)
        kept = undominated(np.array([c.val_accuracy for c in found]), costs_NK)
        return [found[i] for i in np.lexsort(costs_NK.T[::-1]) if kept[i]]
