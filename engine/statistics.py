"""Statistics that several stages share: Pareto fronts, intervals, and agreement of rankings."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Z_90 = 1.6449  # 90% of a normal distribution lie within so many standard deviations of its mean
COVERAGE = 0.9  # share of new measurements that an interval is to hold
# The median absolute deviation times this is the standard deviation of normally distributed errors.
STD_OF_MAD = 1.4826
SIMILAR_MACS = 10_000_000  # a difference of so many MACs at most counts as the same size


def pareto_front(values_N: Floats, costs_NK: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of the points that no other point beats, cheapest first.

    A point is beaten where another one has at least its value at no higher cost of any kind. Of points that
    are equal in the value and in all costs the first one stays. So of equally cheap points only the best one
    stays, and of equally good ones only the cheapest.

        pareto_front(np.array([0.5, 0.7, 0.6]), np.array([[10], [20], [30]]))  # array([0, 1])

    Args:
        values_N: what is to be as high as possible, such as accuracies.
        costs_NK: what is to be as low as possible, K kinds of cost in any units; K is at least 1.

    Returns:
        Indices into the N points, ordered by the first cost, then by the next.
    """
    if not len(values_N):
        return np.empty(0, np.intp)
    if costs_NK.shape[1] == 1:
        # With one cost a sort is enough. The dynamic programme of selection relies on its speed: it takes the
        # front of 100,000s of points for every block of a network.
        order = np.lexsort((-values_N, costs_NK[:, 0]))
        best_of_cheaper = np.maximum.accumulate(values_N[order])[:-1]
        is_better = np.concatenate([[True], values_N[order][1:] > best_of_cheaper])
        return order[is_better]
    kept: list[int] = []
    kept_costs = np.empty_like(costs_NK)
    # From the highest value down, so that only points that were kept before can beat the next one.
    for i in np.lexsort((*costs_NK.T, -values_N)):
        is_beaten = (kept_costs[: len(kept)] <= costs_NK[i]).all(axis=1).any()
        if not is_beaten:
            kept_costs[len(kept)] = costs_NK[i]
            kept.append(i)
    front = np.array(kept, np.intp)
    return front[np.lexsort(costs_NK[front].T[::-1])]


def wilson_interval(accuracy: float, images: int, deviations: float = Z_90) -> tuple[float, float]:
    """The interval of an accuracy that was measured on so many images (Wilson's score interval), 90% of it.

    It says how far the accuracy on other images of the same kind may be, also near 0 and 1. Two networks that
    were measured on the same images differ by less.

    Args:
        accuracy: share of the images that were right, in [0, 1].
        images: how many images.
        deviations: half its width, in standard deviations of a normal distribution; the default holds 90%.

    Returns:
        (lowest, highest) accuracy, in [0, 1].
    """
    z = deviations**2 / images
    middle = (accuracy + z / 2) / (1 + z)
    half = np.sqrt(z * (accuracy * (1 - accuracy) + z / 4)) / (1 + z)
    return float(max(middle - half, 0)), float(min(middle + half, 1))


def paired_drop_interval(
    lost: int, gained: int, images: int, deviations: float = Z_90
) -> tuple[float, float]:
    """The interval of an accuracy that one classifier loses against another on the same images, 90% of it.

    It is Wald's interval after half an image was added to each of the four cells of the table (Agresti and
    Min 2005), so that it has a width even where all images agree: then it says what so many images can tell.

        paired_drop_interval(0, 0, 12)    # about (-0.12, 0.12)

    Args:
        lost: images that only the first one gets right.
        gained: images that only the second one gets right.
        images: how many images.
        deviations: half its width, in standard deviations of a normal distribution; the default holds 90%.

    Returns:
        (least, most) share of images lost, in [-1, 1].
    """
    total = images + 2
    drop = (lost - gained) / total
    half = deviations * np.sqrt((lost + gained + 1) / total - drop**2) / np.sqrt(total)
    return float(max(drop - half, -1)), float(min(drop + half, 1))


def told_apart(difference: float, *stds: float) -> bool:
    """Whether two accuracies differ by more than 90% of such differences do by chance.

    Args:
        difference: of the two.
        stds: the standard error of each.
    """
    return abs(difference) > Z_90 * math.hypot(*stds)


def better_than_chance(tau: float, count: int) -> bool:
    """Whether Kendall's tau of `count` items is above 95% of those that random orders give."""
    # The variance of tau without ties (Kendall, A new measure of rank correlation, 1938).
    return tau > Z_90 * math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))


def format_accuracy(accuracy: float, images: int) -> str:
    """An accuracy with its standard error in points, as every command prints it: `94.60% ±1.2`.

    The error comes from the number of images alone: half of Wilson's interval of one standard deviation. That
    is sqrt(p (1 - p) / n), but not 0 where all images were right.

    Args:
        accuracy: share of the images that were right, in [0, 1].
        images: how many images it was measured on.
    """
    low, high = wilson_interval(accuracy, images, deviations=1.0)
    return f"{accuracy:.2%} ±{100 * (high - low) / 2:.1f}"


def overall_accuracy(confusion_KK: Counts) -> float:
    """The share of all images that were right, in [0, 1], from counts (K, K): true class, predicted class."""
    return float(np.trace(confusion_KK) / confusion_KK.sum())


def class_accuracies(confusion_KK: Counts) -> Floats:
    """The share of each class's images that were right (K,), in [0, 1]; not a number without images."""
    images_K = confusion_KK.sum(1)
    with np.errstate(invalid="ignore"):
        return np.diag(confusion_KK) / images_K


def balanced_accuracy(confusion_KK: Counts) -> float:
    """The mean of the accuracies of all classes that have images, in [0, 1].

    Every class counts alike, however many images it has: a network that always says the largest class gets
    1 / K.
    """
    return float(np.nanmean(class_accuracies(confusion_KK)))


def describe_confusion(confusion_KK: Counts, classes: Sequence[str]) -> str:
    """Accuracy, balanced accuracy and the worst classes in one line."""
    images = int(confusion_KK.sum())
    return (
        f"{format_accuracy(overall_accuracy(confusion_KK), images)}; balanced "
        f"{balanced_accuracy(confusion_KK):.2%}; worst: {worst_classes(confusion_KK, classes)}"
    )


def worst_classes(confusion_KK: Counts, classes: Sequence[str]) -> str:
    """All classes of the least accuracy: `cat 50.00% ±14.3`, `cat, dog and 3 more (0.00%)`."""
    accuracies_K = class_accuracies(confusion_KK)
    rows = list(class_rows(confusion_KK, classes))
    count = int(np.count_nonzero(accuracies_K == np.nanmin(accuracies_K)))
    name, _, accuracy, _ = rows[0]
    if count == 1:
        return f"{name} {accuracy}"
    # Without the error, which is another one where a class has more images.
    accuracy = accuracy.partition(" ")[0]
    if count == len(rows):
        return f"all alike ({accuracy})"
    if count == 2:
        return f"{name} and {rows[1][0]} ({accuracy})"
    return f"{name}, {rows[1][0]} and {count - 2} more ({accuracy})"


def class_rows(confusion_KK: Counts, classes: Sequence[str]) -> Iterator[tuple[str, int, str, str]]:
    """For each class its name, images, accuracy, and the class that it is most often taken for.

    The worst class comes first, of equal ones that with most images; classes without images are left out.
    """
    accuracies_K = class_accuracies(confusion_KK)
    images_K = confusion_KK.sum(1)
    for i in np.lexsort((-images_K, accuracies_K)):
        if images_K[i] == 0:
            continue
        mistakes_K = confusion_KK[i].copy()
        mistakes_K[i] = 0
        other = int(mistakes_K.argmax())
        taken_for = f"{classes[other]} ({mistakes_K[other]})" if mistakes_K[other] else "-"
        yield classes[i], int(images_K[i]), format_accuracy(accuracies_K[i], int(images_K[i])), taken_for


def conformal_quantile(ratios_N: Floats, weights_N: Floats | None = None) -> float:
    """The value under which 90% of new ratios stay, if they are drawn like these.

    Split conformal prediction (Lei et al., Distribution-free predictive inference for regression, 2018,
    arXiv:1604.04173); with weights, its weighted form (Barber et al., Conformal prediction beyond
    exchangeability, 2023, arXiv:2202.13415).

    Args:
        ratios_N: sizes of errors, such as |measured - predicted| / standard deviation; at least one. Where
            they are too few for 90%, the largest is returned.
        weights_N: how much each counts, where 1 is a ratio that is drawn like the new one; None: 1 each.
    """
    order = np.argsort(ratios_N)
    weights_N = np.ones(len(ratios_N)) if weights_N is None else weights_N[order]
    # The new ratio has weight 1 and may be larger than all others. 1e-9: sums of weights are rounded.
    reached = np.cumsum(weights_N) >= COVERAGE * (weights_N.sum() + 1) - 1e-9
    rank = int(np.argmax(reached)) if reached.any() else len(ratios_N) - 1
    return float(ratios_N[order[rank]])


def similar_macs(macs_N: NDArray[Any]) -> float:
    """How far apart the MACs of two networks may be that count as one size.

    Returns:
        10M MACs, or a twentieth of the range of `macs_N` if that is less: of small networks 10M are the
        whole range.
    """
    return min(SIMILAR_MACS, float(np.ptp(macs_N)) / 20)


def tau_in_bands(measured_N: Floats, predicted_N: Floats, macs_N: NDArray[Any]) -> float:
    """Kendall's tau-b over those pairs of networks whose MACs differ by `similar_macs` at most.

    It says how well a predictor ranks the networks that a choice under a budget compares. The plain tau
    flatters: MACs alone rank networks of all sizes well, and networks of one size not at all.

    Returns:
        tau-b in [-1, 1]; not a number if no two networks have similar MACs, or all of those tie.
    """
    first, second = np.triu_indices(len(measured_N), 1)
    similar = np.abs(macs_N[first] - macs_N[second]) <= similar_macs(macs_N)
    first, second = first[similar], second[similar]
    measured_order = np.sign(measured_N[first] - measured_N[second])
    predicted_order = np.sign(predicted_N[first] - predicted_N[second])
    untied = np.sqrt(float(np.count_nonzero(measured_order)) * np.count_nonzero(predicted_order))
    if not untied:
        return float("nan")
    return float(measured_order @ predicted_order / untied)


def counts_to_text(counts_KK: Counts) -> str:
    """Counts as one line of text, which one process sends to another; most of them are 0."""
    filled = np.nonzero(counts_KK)
    return json.dumps([len(counts_KK), *(column.tolist() for column in (*filled, counts_KK[filled]))])


def counts_from_text(text: str) -> Counts:
    """The counts (K, K) that `counts_to_text` wrote."""
    size, rows, columns, counts = json.loads(text)
    counts_KK = np.zeros((size, size), np.int64)
    counts_KK[rows, columns] = counts
    return counts_KK


def fit_line(x_N: Floats, y_N: Floats) -> tuple[float, float, NDArray[np.bool_]]:
    """y = scale x + offset by least squares of the relative error, without outliers.

    A scale that comes out negative, from few and noisy points, is replaced by the ratio of the means.

    Args:
        x_N, y_N: the points; y is positive.

    Returns:
        Scale, offset, and (N,) which points are no outliers.
    """
    kept = np.ones(len(y_N), np.bool_)
    scale = offset = 0.0
    # Outliers pull the fit away and hide others, so they are looked for three times.
    for _ in range(3):
        # Divided by y: a unit counts more where y is small.
        rows = np.stack([x_N[kept], np.ones(kept.sum())], axis=1) / y_N[kept, None]
        scale, offset = map(float, np.linalg.lstsq(rows, np.ones(kept.sum()), rcond=None)[0])
        if scale <= 0:
            scale, offset = float(y_N[kept].mean() / x_N[kept].mean()), 0.0
        error = (scale * x_N + offset - y_N) / y_N
        error = error - np.median(error)  # the fit itself may be off as long as outliers are in it
        # Five standard deviations, estimated by a median, which outliers hardly change.
        kept = np.abs(error) <= 5 * STD_OF_MAD * np.median(np.abs(error)) + 1e-9
    return scale, offset, kept
