"""Pareto fronts against their definition, intervals against scipy's, and Kendall's tau in bands of MACs."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kendalltau
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from engine.compute.evaluation import confusion
from engine.statistics import (
    balanced_accuracy,
    class_accuracies,
    class_rows,
    conformal_quantile,
    describe_confusion,
    format_accuracy,
    overall_accuracy,
    pareto_front,
    tau_in_bands,
    wilson_interval,
    worst_classes,
)


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_front_is_what_no_point_beats(kinds: int) -> None:
    rng = np.random.default_rng(0)
    values, costs = rng.integers(0, 8, 200).astype(float), rng.integers(0, 8, (200, kinds))
    front = pareto_front(values, costs)
    for i in range(200):
        beats = (values >= values[i]) & (costs <= costs[i]).all(1)
        better = beats & ((values > values[i]) | (costs < costs[i]).any(1))
        assert (i in front) == (not better.any() and np.flatnonzero(beats)[0] == i), "of equals the first"
    assert [tuple(row) for row in costs[front]] == sorted({tuple(row) for row in costs[front]})


def test_front_is_cheapest_first_and_may_be_empty() -> None:
    costs, accuracies = np.array([3.0, 1.0, 2.0, 4.0, 5.0, 1.0]), np.array([0.5, 0.3, 0.3, 0.4, 0.9, 0.2])
    assert pareto_front(accuracies, costs[:, None]).tolist() == [1, 0, 4]
    assert pareto_front(accuracies, np.stack([costs, costs], axis=1)).tolist() == [1, 0, 4]
    assert pareto_front(accuracies[:0], costs[:0, None]).tolist() == []


@pytest.mark.parametrize(("right", "images"), [(0, 50), (50, 50), (371, 539), (9, 10)])
def test_interval_of_an_accuracy(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(0.9, "wilson")
    assert wilson_interval(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_nine_of_ten_new_ratios_stay_under_the_quantile() -> None:
    rng = np.random.default_rng(0)
    shares = [
        np.mean(rng.exponential(size=500) <= conformal_quantile(rng.exponential(size=30))) for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(28 / 31, abs=0.01), "rank 28 of 30: the nearest above 0.9 x 31"
    assert conformal_quantile(np.array([3.0, 1.0])) == 3.0


def test_bands_hold_networks_of_similar_macs_only() -> None:
    rng = np.random.default_rng(0)
    y, predicted, macs = rng.normal(size=60), rng.normal(size=60), rng.integers(10**8, 10**9, 60)
    agree, mine, theirs = 0, 0, 0
    for i in range(60):
        for j in range(i):
            if abs(macs[i] - macs[j]) <= 10_000_000:
                agree += int(np.sign(y[i] - y[j]) * np.sign(predicted[i] - predicted[j]))
                mine, theirs = mine + 1, theirs + 1
    assert tau_in_bands(y, predicted, macs) == pytest.approx(agree / np.sqrt(mine * theirs))


def test_of_small_networks_bands_are_a_twentieth_of_the_range() -> None:
    rng = np.random.default_rng(0)
    macs = rng.integers(0, 400_000_000, 200)
    y, predicted = macs + rng.normal(0, 1e8, 200), macs.astype(float)
    small = tau_in_bands(y, predicted, macs // 1_000)
    assert small < kendalltau(y, predicted).statistic - 0.2
    assert small == tau_in_bands(y, predicted, macs // 10_000) != tau_in_bands(y, predicted, macs * 10)


def test_nothing_similar_is_not_a_number() -> None:
    assert np.isnan(tau_in_bands(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.array([10**6, 10**9])))
    assert np.isnan(tau_in_bands(np.full(9, 0.5), np.arange(9.0), np.full(9, 10)))


def test_confusion_and_its_accuracies_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(7, 300, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02])
    logits = torch.from_numpy(rng.normal(size=(300, 7)).astype(np.float32) + 1.5 * np.eye(7, dtype="f4")[y])
    batches = list(zip(logits.split(64), torch.from_numpy(y).split(64), strict=True))
    found, said = confusion(lambda x: x, batches, 7), logits.argmax(1).numpy()
    assert np.array_equal(found, confusion_matrix(y, said, labels=range(7)))
    assert overall_accuracy(found) == pytest.approx(accuracy_score(y, said))
    assert balanced_accuracy(found) == pytest.approx(balanced_accuracy_score(y, said))
    assert class_accuracies(found) == pytest.approx(recall_score(y, said, average=None))


def test_a_class_without_images_counts_nowhere() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 4, 5]])
    assert balanced_accuracy(counts) == pytest.approx((0.8 + 0.5) / 2)
    assert [row[0] for row in class_rows(counts, ["a", "b", "c"])] == ["c", "a"], "the worst first"
    assert next(class_rows(counts, ["a", "b", "c"]))[3] == "b (4)"
    assert describe_confusion(counts, ["a", "b", "c"]).startswith(
        "65.00% ±10.4; balanced 65.00%; worst: c 50.00%"
    )


@pytest.mark.parametrize(
    ("wrong", "said"), [(1, "a 0.00% ±10.0"), (2, "a and b (0.00%)"), (4, "a, b and 2 more (0.00%)")]
)
def test_all_that_are_worst_are_counted(wrong: int, said: str) -> None:
    """Of equally bad classes none is the worst."""
    counts = np.diag([0] * wrong + [4] * (5 - wrong))
    counts[:wrong, 4] = 4
    assert worst_classes(counts, "abcde") == said
    assert worst_classes(np.diag([4, 5]), "ab") == "all alike (100.00%)"


def test_the_error_of_an_accuracy_is_binomial_and_never_none() -> None:
    assert format_accuracy(0.8, 1000) == f"80.00% ±{100 * (0.8 * 0.2 / 1000) ** 0.5:.1f}"
    assert format_accuracy(1.0, 100) == "100.00% ±0.5"
