"""Every selected subnet on test images: beside random ones of its size, the largest, and the smallest."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.config import format_count
from engine.statistics import Floats, format_accuracy, told_apart
from predictors.reporting.exported import ExportedFile, describe_file
from predictors.reporting.rivals import FEWEST_RIVALS, SAME_MACS

Images = Mapping[str, int]
MOST_FILES = 3  # that a headline names


class Comparison(NamedTuple):
    """A selected subnet, or one of the two ends of the space, on test images.

    All accuracies but `tuned_accuracy` are with the supernet's weights, so they can be compared.

    budget: name of the selected subnet; `smallest` or `largest`.
    expected_accuracy, expected_low, expected_high: what predictors.select expected, with its 90% interval.
    val_accuracy: none where it was never measured.
    tuned_accuracy: with the weights of ofa.tune; none if it was not tuned.
    random_count: random subnets within 5% of its MACs that were tested. Where they are too few to compare
        with, the other fields of random subnets are none.
    random_median: of their test accuracies.
    random_beaten: how many of them are worse.
    random_macs_apart: the largest difference of their MACs from its own, as a share of its own.
    below_largest, below_std: largest subnet minus this one in points, and the standard error of that: both
        are measured on the same images.
    share_of_largest: its MACs as a share of the largest subnet's.
    """

    budget: str
    kind: str
    macs: int
    params: int
    latency_ms: float | None
    expected_accuracy: float | None
    expected_low: float | None
    expected_high: float | None
    val_accuracy: float | None
    test_accuracy: float
    tuned_accuracy: float | None
    random_count: int
    random_median: float | None
    random_beaten: int | None
    random_macs_apart: float | None
    below_largest: float
    below_std: float
    share_of_largest: float

    @property
    def is_selected(self) -> bool:
        """Whether it is a selected subnet, and not an end of the space."""
        return self.kind == "selected"


class AgainstRandom(NamedTuple):
    """How a subnet compares with random ones of its size; `Comparison` says what the fields are."""

    others: int
    median: float | None
    beaten: int | None
    macs_apart: float | None


def compare_with_rivals(
    macs: int, accuracy: float, rivals: Sequence[tuple[int, float]], fewest: int = FEWEST_RIVALS
) -> AgainstRandom:
    """Compare a subnet with random ones.

    Args:
        macs: of the subnet.
        accuracy: of the subnet, on the same images as theirs.
        rivals: MACs and accuracy of each random subnet.
        fewest: fewer of them are no comparison.
    """
    if len(rivals) < fewest:
        return AgainstRandom(len(rivals), None, None, None)
    accuracies = np.array([accuracy for _, accuracy in rivals])
    apart = max(abs(other / macs - 1) for other, _ in rivals)
    return AgainstRandom(len(rivals), float(np.median(accuracies)), int((accuracies < accuracy).sum()), apart)


def points_apart(hits_N: Floats, other_N: Floats) -> tuple[float, float]:
    """Accuracy of one subnet minus that of another, in points, and the standard error of this.

    Args:
        hits_N: 1 for each image that the one classified correctly, else 0.
        other_N: the same of the other subnet, on the same images. So the difference is more certain than two
            accuracies of different images.
    """
    difference_N = 100 * (hits_N - other_N)
    return float(difference_N.mean()), float(difference_N.std() / np.sqrt(len(difference_N)))


def any_tuned(comparisons: Sequence[Comparison]) -> bool:
    """Whether a selected subnet was tuned, which the random ones and the ends of the space never are."""
    return any(c.tuned_accuracy is not None for c in comparisons)


def lead_sentence(comparisons: Sequence[Comparison], images: int) -> str:
    """What selection was worth over all budgets on so many test images, in one sentence."""
    selected = [c for c in comparisons if c.is_selected]
    gains, accuracies = [], []
    beaten = count = 0
    for c in selected:
        if c.random_median is not None and c.random_beaten is not None:
            gains.append(100 * (c.test_accuracy - c.random_median))
            accuracies.append(c.test_accuracy)
            beaten, count = beaten + c.random_beaten, count + c.random_count
    if not gains:
        return (
            f"There are fewer than {FEWEST_RIVALS} other subnets within {SAME_MACS:.0%} of the MACs of any "
            "chosen one, so nothing says what a random choice of the same size would give."
        )
    gain = sum(gains) / len(gains)
    if len(selected) == 1:
        which = "the chosen subnet is"
    elif len(gains) == len(selected):
        which = f"the {len(gains)} chosen subnets are on average"
    elif len(gains) == 1:
        which = f"one of the {len(selected)} chosen subnets is"
    else:
        which = f"{len(gains)} of the {len(selected)} chosen subnets are on average"
    where = "above" if gain >= 0 else "below"
    # What a subnet is compared with is not tuned, so neither is the subnet here.
    untuned = " and untuned" if any_tuned(comparisons) else ""
    # That of one accuracy: of differences on the same images it is too large rather than too small.
    accuracy = float(np.mean(accuracies))
    error = 100 * np.sqrt(accuracy * (1 - accuracy) / images)
    doubt = "" if told_apart(gain, error) else "; so small a difference may be chance"
    return (
        f"On test images{untuned}, {which} {abs(gain):.1f} points {where} the median random subnet of the "
        f"same size (MACs within {SAME_MACS:.0%}), and better than {beaten} of {count}{doubt}."
    )


def headline(
    c: Comparison, images: Images, files: Sequence[ExportedFile] = (), more: Sequence[str] = ()
) -> str:
    """What a budget gives, in a sentence or two: `300k: 96.2% ±0.7 on test images with 248k MACs; ...`.

    Args:
        c: a selected subnet.
        images: how many there are by split.
        files: that were exported of it.
        more: sentences to add, without their full stops.
    """
    beside = []
    if c.random_beaten is None:
        number = c.random_count or "none"
        beside.append(f"too few others have its MACs within {SAME_MACS:.0%} to compare with ({number})")
    else:
        beside.append(f"better than {c.random_beaten} of {c.random_count} random subnets of the same size")
    beside.append(_beside_largest(c))
    test = format_short(c.test_accuracy, images["test"])
    macs = f"{format_count(c.macs)} MACs"
    if c.tuned_accuracy is None:
        said = "; ".join([f"{c.budget}: {test} on test images with {macs}", *beside])
    else:
        # What it is compared with is not tuned, so the comparison is that of the supernet's weights.
        tuned = format_short(c.tuned_accuracy, images["test"])
        said = f"{c.budget}: {tuned} on test images, tuned, with {macs}. "
        said += f"Untuned, like all that it is compared with, {test}: " + "; ".join(beside)
    said += "."
    for sentence in more:
        said += f" {sentence}."
    if files:
        described = ", ".join(describe_file(file) for file in files[:MOST_FILES])
        rest = f", and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
        said += f" Exported: {described}{rest}."
    return said


def _beside_largest(c: Comparison) -> str:
    if c.share_of_largest == 1 and c.below_std == 0:
        return "this is the largest subnet"
    macs = f"{format_share(c.share_of_largest)} of its MACs"
    error = f" ±{c.below_std:.1f}"
    if abs(c.below_largest) < 0.05:
        return f"as good as the largest subnet, with {macs}"
    where = "below" if c.below_largest > 0 else "above"
    return f"{abs(c.below_largest):.1f}{error} points {where} the largest subnet, with {macs}"


def format_share(share: float) -> str:
    """`7%`, and below one percent a digit that is not 0: `0.4%`."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def format_short(accuracy: float, images: int) -> str:
    """An accuracy with its standard error, with one digit less than commands print: `96.2% ±0.7`."""
    error = format_accuracy(accuracy, images).rpartition(" ")[2]
    return f"{100 * accuracy:.1f}% {error}"
