"""Candidates by predicted accuracy: find the most promising, measure a few, learn from them, and find again."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from engine.config import format_count
from engine.progress import Advance
from ofa.space import Codes
from predictors.accuracy import Predictor
from predictors.explore import Scores
from predictors.features import features
from predictors.measured import Measured
from predictors.quality import Quality

PER_ROUND = 5
Find = Callable[[Scores, bool], Iterable[tuple[int, Codes]]]


def measure_promising(measured: Measured, predictor: Predictor, quality: Quality, find: Find, count: int, advance: Advance) -> None:
    """Measure at most `count` subnets for each budget, and let the fitted `predictor` learn from them.

    A search over predictions finds where the predictor is too hopeful. So it learns from five for each budget before it is
    searched again.

    Args:
        quality: of the predictor, for its intervals.
        find: from how to score and whether this is the first round to budgets and architectures under them, the most promising first.
    """
    space = measured.space

    def score(rows: Codes) -> NDArray[np.float64]:
        return predictor.mean(features(space, rows))

    for start in range(0, count, PER_ROUND):
        before = len(measured)
        for budget, rows in find(score, start == 0):
            fresh = [row for row in rows if row not in measured][: min(PER_ROUND, count - start)]
            for row in fresh:
                mean, std = predictor.predict(features(space, row[None]))
                advance(
                    f"{format_count(budget)} {measured.measure(row, float(mean[0]), float(std[0]), float(quality.half_width(std)[0])):.2%}"
                )
        if len(measured) == before:
            break
        codes, y = measured.training_set()
        predictor.update(features(space, codes), y)
