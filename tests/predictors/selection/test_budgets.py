"""What a budget is worth, in sentences."""

import numpy as np
import pytest

from ofa.space.codes import Codes
from predictors.search.constraints import Constraint, Objective
from predictors.selection.budgets import budget_sentences, half_budget, half_sentence
from predictors.selection.evaluations import Candidate
from predictors.selection.posterior import Estimate, choose


def macs(rows: Codes) -> np.ndarray:
    """10k for each unit of the first column."""
    return rows[:, 0].astype(np.int64) * 10_000


def milliseconds(rows: Codes) -> np.ndarray:
    return rows[:, 1].astype(float)


def subnet(size: int, ms: int, accuracy: float, std: float = 0.0005) -> Estimate:
    row = np.array([size, ms], np.uint8)
    return Estimate(Candidate(row, accuracy, "select"), accuracy, std, (accuracy - 0.01, accuracy + 0.01))


def budget(limit: float, *more: Constraint) -> Objective:
    return Objective.best([Constraint("macs", limit, macs), *more])


def test_half_of_all_limits() -> None:
    objective = budget(1_000_000, Constraint("latency", 10, milliseconds))
    fast, slow, large = subnet(40, 5, 0.945), subnet(50, 6, 0.95), subnet(90, 9, 0.955)
    half = half_budget([fast, slow, large], objective.constraints)
    assert half is fast
    assert half_sentence(objective, large, half, 500) == (
        "1M-10ms: half of it would give 94.5% (93.5 to 95.5) with 400k MACs and 5ms, 1 point less."
    )
    assert half_sentence(objective, fast, fast, 500).endswith(
        "the selected subnet is within half of it already."
    )
    # Ties and tuned finalists may decide for a subnet of which less is expected.
    assert half_sentence(objective, subnet(90, 9, 0.94), half, 500).endswith("and 5ms, no less.")
    assert half_budget([slow, large], objective.constraints) is None
    assert half_sentence(objective, large, None, 500) == "1M-10ms: no measured subnet is within half of it."


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        ((30, 0.946), (90, 0.955), "1M gives 95.5%, 300k 94.6%: 0.9 points for 3 times the MACs."),
        ((30, 0.945), (100, 0.955), "1M gives 95.5%, 300k 94.5%: 1 point for 3.3 times the MACs."),
        ((30, 0.945), (33, 0.947), "1M gives 94.7%, 300k 94.5%: 0.2 points for 10% more MACs."),
        (
            (30, 0.95),
            (90, 0.94),
            "The subnet of 300k keeps the limits of 1M and is expected to be better: 95.0% against 94.0%.",
        ),
        ((20, 0.94), (25, 0.95), "1M gives 95.0%, 300k 94.0%: 1 point for 25% more MACs."),
    ],
)
def test_what_a_larger_budget_adds(small: tuple[int, float], large: tuple[int, float], said: str) -> None:
    budgets = [
        (budget(1_000_000), subnet(large[0], 1, large[1])),
        (budget(300_000), subnet(small[0], 1, small[1])),
    ]
    assert budget_sentences(budgets, macs, 500)[0] == said
    # A subnet of the larger budget may fit the smaller one as well.
    assert len(budget_sentences(budgets, macs, 500)) == 1 + (large[0] <= 30)


def test_a_difference_that_may_be_chance_is_no_gain() -> None:
    cheap, dear = subnet(30, 1, 0.946, 0.01), subnet(90, 1, 0.955, 0.01)
    assert half_sentence(budget(1_000_000), dear, cheap, 150) == (
        "1M: half of it would give 94.6% (93.6 to 95.6) with 300k MACs; 150 validation images cannot tell "
        "that from 95.5%."
    )
    said = ["1M (95.5%) and 300k (94.6%) cannot be told apart on 150 validation images."]
    assert budget_sentences([(budget(300_000), cheap), (budget(1_000_000), dear)], macs, 150) == said
    # Nor is the cheaper one better, where more is expected of it.
    lucky = subnet(30, 1, 0.96, 0.01)
    (said,) = budget_sentences([(budget(300_000), lucky), (budget(1_000_000), dear)], macs, 150)
    assert "cannot be told apart" in said


def test_one_subnet_for_two_budgets() -> None:
    """Each budget's study expects a little else of it, which makes it neither better nor worse."""
    budgets = [(budget(1_000_000), subnet(20, 1, 0.950)), (budget(300_000), subnet(20, 1, 0.951))]
    assert budget_sentences(budgets, macs, 500) == ["1M and 300k select the same subnet."]


def test_equally_good_subnets_go_to_the_cheaper() -> None:
    found = [subnet(30, 1, 0.95 - 1e-9), subnet(20, 1, 0.95 - 2e-9), subnet(60, 1, 0.95)]
    chosen = choose(found, budget(1_000_000).constraints)
    assert chosen is found[1]
