"""What accuracy to expect of every measured subnet, and which one to select by that.

The best of many measurements is too high: its subnet is good, and its images were lucky (the winner's curse).
So two things are put together that know of each subnet: its own measurement, and what a predictor says of it
that learned from the other subnets only. Each counts by its precision, which is 1 / variance. A lucky
measurement is drawn back towards what similar subnets reached, and the one with the highest posterior mean is
selected.

With few validation images that is a better choice than the highest measurement, and than the cheapest subnet
within one standard error of it (docs/log.md).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.statistics import Z_90, Floats, pareto_front, wilson_interval
from predictors.accuracy.features import features
from predictors.accuracy.models import PredictorName
from predictors.accuracy.predictor import LEAST_STD
from predictors.accuracy.validation import predict_from_other_folds, predictive_std
from predictors.search.constraints import ArchCostFn, Constraint, fits, utilisation
from predictors.selection.evaluations import FEWEST_TO_LEARN_FROM, Candidate, Evaluations, rows_of
from predictors.selection.intervals import PATIENCE

FOLDS = 20  # so that a subnet is predicted from nearly all others, also from those near it
MANY_PAIRS, FOLDS_OF_MANY = 1_000, 5  # of so many a fifth is hardly missed, and each fold takes seconds
# A measurement counts at least this much beside its prediction, however well the predictor does elsewhere:
# the variance about predictions does not tell luck from what is special about a subnet. With less, intervals
# were too narrow in simulations, and with more the choice was worse (docs/log.md).
LEAST_SHARE = 0.35
# Degrees of freedom of the tails of prediction errors. More believe a special subnet less, and fewer believe
# luck more (docs/log.md).
FREEDOM = 3.0
REWEIGHTINGS = 10  # then the shares hardly change
# Digits of an accuracy: those that agree in so many are equal, and the cheaper subnet is better.
DIGITS = 6


class Estimate(NamedTuple):
    """A measured subnet and the accuracy to expect of it.

    candidate: the subnet with its measurement.
    accuracy: the posterior mean.
    std: the posterior standard deviation, by which subnets are compared. What all subnets share, since they
        are measured on the same images, is not in it.
    interval: 90% interval of the accuracy on other images of the same kind. What all share is in it.
    """

    candidate: Candidate
    accuracy: float
    std: float
    interval: tuple[float, float]


def estimate(evaluations: Evaluations, member: PredictorName, seed: int) -> list[Estimate]:
    """The accuracy to expect of every measured subnet.

    The variance of a measurement about its prediction holds how wrong the prediction is and the luck of the
    images. The second is binomial, at most: p(1 - p)/n. The images are the same for all subnets, so a part of
    their luck is common to all, and the variance about predictions may be less than binomial. The part that
    it has no room for must be common: it changes no ranking, but belongs to the interval.

    With fewer than 10 subnets nothing can be learned from the others: the measured accuracy is expected, with
    Wilson's interval.

    Args:
        evaluations: what is measured.
        member: the predictor that predicts each subnet from others.
        seed: of the folds and the predictor.
    """
    # In an order that does not depend on who measured what first: folds are drawn by it.
    candidates = sorted(evaluations.under([]), key=_row_bytes)
    if len(candidates) < FEWEST_TO_LEARN_FROM:
        return [_as_measured(candidate, evaluations) for candidate in candidates]
    y = np.array([candidate.val_accuracy for candidate in candidates])
    X = features(evaluations.space, rows_of(candidates))
    folds = min(FOLDS, len(y)) if len(y) < MANY_PAIRS else FOLDS_OF_MANY
    mean, std, _ = predict_from_other_folds(member, X, y, seed, folds, refit=False)
    # A search finds subnets of which the predictor is too hopeful, also after it has learned from the others.
    own = np.array([candidate.source == "select" for candidate in candidates])
    mean[own] += np.sum((y - mean)[own]) / (np.count_nonzero(own) + PATIENCE)
    mean = np.clip(mean, 0, 1)
    misses = np.abs(y - mean)
    std = predictive_std(std, float(np.median(misses)))
    # Variances as they turned out to be: the predictor's own may all be too small or too large. They are
    # never 0, also where all subnets measured alike.
    total = std**2 * np.mean(misses**2 / std**2) + LEAST_STD**2
    # By the predicted accuracy: a lucky measurement would claim less noise, and count for more. Two right and
    # two wrong images more (Agresti and Coull 1998) keep an accuracy of 100% from having no noise.
    images = evaluations.images
    smoothed = (mean * images + 2) / (images + 4)
    binomial = smoothed * (1 - smoothed) / images
    noise = np.minimum(binomial, (1 - LEAST_SHARE) * total)
    share = _share_of_measurement(y - mean, total - noise, noise)
    posterior = mean + share * (y - mean)
    variance = share * noise
    half = Z_90 * np.sqrt(variance + binomial - noise)
    found = []
    for i, candidate in enumerate(candidates):
        interval = (float(max(posterior[i] - half[i], 0)), float(min(posterior[i] + half[i], 1)))
        found.append(Estimate(candidate, float(posterior[i]), float(np.sqrt(variance[i])), interval))
    return found


def _share_of_measurement(misses_N: Floats, wrong_N: Floats, noise_N: Floats) -> Floats:
    """(N,) how much each measurement counts beside its prediction, whose share is the rest.

    By precision it would be wrong / (wrong + noise). But a few subnets are special, such as the smallest and
    the largest, which the sandwich rule trains in every step: predictions miss them by far more than luck
    can. So how wrong predictions are has the heavy tails of Student's t, whose mode is found by reweighting:
    what is left of a miss after the luck is taken away widens the variance of its prediction.

    Args:
        misses_N: measured - predicted.
        wrong_N: variances of predictions about the true accuracies.
        noise_N: variances of measurements about them.
    """
    wide_N = wrong_N
    for _ in range(REWEIGHTINGS):
        left_N = misses_N * wide_N / (wide_N + noise_N)
        wide_N = wrong_N * np.maximum((FREEDOM + left_N**2 / wrong_N) / (FREEDOM + 1), 1)
    return wide_N / (wide_N + noise_N)


def _row_bytes(candidate: Candidate) -> bytes:
    return candidate.row.tobytes()


def _as_measured(candidate: Candidate, evaluations: Evaluations) -> Estimate:
    accuracy = candidate.val_accuracy
    interval = wilson_interval(accuracy, evaluations.images)
    return Estimate(candidate, accuracy, evaluations.noise(accuracy), interval)


def under(estimates: Sequence[Estimate], constraints: Sequence[Constraint]) -> list[Estimate]:
    """The subnets that keep every limit, the one to expect most of first; of equal ones the cheaper one."""
    if not estimates:
        return []
    rows = rows_of([estimate.candidate for estimate in estimates])
    # By accuracy, and then by cost: lexsort takes the last key first.
    order = np.lexsort((utilisation(constraints, rows), -_accuracies(estimates)))
    inside = fits(constraints, rows)
    return [estimates[i] for i in order if inside[i]]


def choose(
    estimates: Sequence[Estimate], constraints: Sequence[Constraint], errors: float = 0.0
) -> Estimate | None:
    """The subnet to expect most of under the limits; none if no subnet keeps them.

    Args:
        estimates: of all measured subnets.
        constraints: the limits.
        errors: if positive, the cheapest subnet instead that is within so many standard errors of the best:
            those of the difference of two accuracies.
    """
    found = under(estimates, constraints)
    if not found:
        return None
    best = found[0]
    ties = []
    for other in found:
        error = np.sqrt(best.std**2 + other.std**2)
        if round(best.accuracy - other.accuracy, DIGITS) <= errors * error:
            ties.append(other)
    rows = rows_of([tie.candidate for tie in ties])
    return ties[int(utilisation(constraints, rows).argmin())]


def front(
    estimates: Sequence[Estimate], costs: Mapping[str, ArchCostFn], constraints: Sequence[Constraint]
) -> list[Estimate]:
    """The Pareto front of expected accuracy against `costs` under every limit, cheapest first."""
    found = under(estimates, constraints)
    if not found:
        return []
    rows = rows_of([estimate.candidate for estimate in found])
    costs_NK = np.stack([cost(rows) for cost in costs.values()], axis=1)
    return [found[i] for i in pareto_front(_accuracies(found), costs_NK)]


def _accuracies(estimates: Sequence[Estimate]) -> Floats:
    return np.array([round(estimate.accuracy, DIGITS) for estimate in estimates])
