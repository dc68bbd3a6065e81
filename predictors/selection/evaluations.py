"""Accuracies of subnets on the validation images: collected ones, and those that a search asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config import are, counted
from engine.errors import UserError
from engine.statistics import Floats
from ofa.space.codes import Codes, encode
from ofa.space.space import Space
from predictors.accuracy.pairs import Pair
from predictors.search.constraints import Constraint, fits, utilisation

FEWEST_TO_LEARN_FROM = 10  # pairs: a predictor is cross-validated in 10 folds, and none may be empty


class Prediction(NamedTuple):
    """What a predictor says of an accuracy in [0, 1] before it is measured; `interval`: the 90% interval."""

    predicted_accuracy: float
    predicted_std: float
    interval: tuple[float, float] | None = None


# Measures encoded architectures, each with what was predicted of it; returns their accuracies in that order.
EvaluateFn = Callable[[Sequence[Codes], Sequence[Prediction | None]], Sequence[float]]


class Candidate(NamedTuple):
    """A measured subnet. There is no prediction if no predictor proposed it."""

    row: Codes
    val_accuracy: float
    source: Literal["pairs", "select"]
    prediction: Prediction | None = None


class Evaluations:
    """Every subnet of known accuracy, each measured once.

        evaluations = Evaluations(space, images=500, pairs=read_pairs(run))
        best = evaluations.under([Constraint("macs", 600e6, macs)])[0]

    Args:
        space: of the subnets.
        images: number of validation images, from which the standard error of an accuracy follows.
        pairs: what is known already.
    """

    def __init__(self, space: Space, images: int, pairs: Sequence[Pair]) -> None:
        self.space, self.images = space, images
        # By the bytes of the codes, which are one-to-one with architectures; in the order of measuring.
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

    def add_measured(self, accuracies: Mapping[bytes, float]) -> None:
        """Keep the accuracies of a study, by the bytes of the row of codes; what is known stays as it is."""
        for row, accuracy in accuracies.items():
            self.add(np.frombuffer(row, np.uint8), accuracy, "select")

    def measure(
        self,
        rows: Sequence[Codes],
        evaluate: EvaluateFn,
        predictions: Sequence[Prediction | None] | None = None,
    ) -> list[float]:
        """Measure new subnets and keep their accuracies.

        Args:
            rows: encoded architectures.
            evaluate: measures them.
            predictions: what was predicted of each; none without a predictor.

        Returns:
            The accuracies, in the order of `rows`.
        """
        predicted = [None] * len(rows) if predictions is None else predictions
        accuracies = list(evaluate(rows, predicted))
        for row, accuracy, prediction in zip(rows, accuracies, predicted, strict=True):
            self.add(row, accuracy, "select", prediction)
        return accuracies

    def training_set(self) -> tuple[Codes, Floats]:
        """(codes (N, F), accuracies (N,)) of all subnets, in the order in which they became known.

        Raises:
            UserError: they are too few to learn from.
        """
        if len(self) < FEWEST_TO_LEARN_FROM:
            raise UserError(
                f"Only {counted(len(self), 'subnet')} {are(len(self))} measured, and a predictor needs at "
                f"least {FEWEST_TO_LEARN_FROM}; run python -m predictors.collect with the "
                "same --run first, or search without a predictor: --explore coarse-to-fine."
            )
        found = list(self._found.values())
        return rows_of(found), _accuracies(found)

    def under(self, constraints: Sequence[Constraint]) -> list[Candidate]:
        """All subnets that keep every limit, best first; of equally good ones the cheaper one first."""
        if not self._found:
            return []
        found = list(self._found.values())
        rows, accuracies = rows_of(found), _accuracies(found)
        # By accuracy, and then by cost: lexsort takes the last key first.
        order = np.lexsort((utilisation(constraints, rows), -accuracies))
        inside = fits(constraints, rows)
        return [found[i] for i in order if inside[i]]

    def noise(self, accuracy: float) -> float:
        """Standard error of an accuracy that was measured on the validation images (binomial)."""
        return float(np.sqrt(accuracy * (1 - accuracy) / self.images))


def rows_of(candidates: Sequence[Candidate]) -> Codes:
    """The codes (N, F) of candidates."""
    return np.stack([c.row for c in candidates])


def _accuracies(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    return np.array([c.val_accuracy for c in candidates])
