"""What a budget is worth: what half of it would give, and what the next larger one adds."""

from collections.abc import Sequence
from itertools import pairwise

from engine.statistics import told_apart
from predictors.search.constraints import ArchCostFn, Constraint, Objective, fits, format_cost
from predictors.selection.posterior import Estimate, choose

# How a cost reads in a sentence.
PHRASES = {
    "macs": "{} MACs",
    "latency": "{}",
    "size": "{} of file",
    "memory": "{} of activations",
    "params": "{} parameters",
}


def half_budget(estimates: Sequence[Estimate], constraints: Sequence[Constraint]) -> Estimate | None:
    """The measured subnet to expect most of within half of all limits; None if none is that cheap."""
    halved = [c._replace(limit=c.limit / 2) for c in constraints]
    return choose(estimates, halved)


def half_sentence(objective: Objective, best: Estimate, half: Estimate | None, images: int) -> str:
    """What half of a budget would cost in accuracy, in one sentence; `images` measured both."""
    name = objective.name
    if half is None:
        return f"{name}: no measured subnet is within half of it."
    if half.candidate is best.candidate:
        return f"{name}: the selected subnet is within half of it already."
    phrases = []
    for c in objective.constraints:
        value = float(c.cost(half.candidate.row[None])[0])
        phrases.append(PHRASES[c.name].format(format_cost(c.name, value)))
    given = f"{name}: half of it would give {format_expected(half.accuracy, half.interval)}"
    given += f" with {' and '.join(phrases)}"
    if not _told_apart(best, half):
        return f"{given}; {images} validation images cannot tell that from {best.accuracy:.1%}."
    # Ties or a short tuning may have decided for a subnet of which less is expected than of this one.
    is_less = round(half.accuracy, 3) < round(best.accuracy, 3)
    end = f"{points(best.accuracy, half.accuracy)} less" if is_less else "no less"
    return f"{given}, {end}."


def budget_sentences(
    selected: Sequence[tuple[Objective, Estimate]], macs: ArchCostFn, images: int
) -> list[str]:
    """What each budget adds to the next smaller one, and which choice is better for another budget.

    A difference that may be chance is no gain.

    Budgets are explored on their own, so that none depends on another one. The choice for a smaller budget
    can therefore be better than that for a larger one, and fit it, too.

    Args:
        selected: the budgets and what was selected for each.
        macs: multiply-accumulates of encoded architectures.
        images: how many the accuracies were measured on.
    """
    sentences = []
    by_macs = sorted(selected, key=lambda pair: _macs(pair[1], macs))
    for (small, cheaper), (large, dearer) in pairwise(by_macs):
        if _same(cheaper, dearer):
            sentences.append(f"{small.name} and {large.name} select the same subnet.")
            continue
        if not _told_apart(cheaper, dearer):
            sentences.append(
                f"{large.name} ({dearer.accuracy:.1%}) and {small.name} ({cheaper.accuracy:.1%}) cannot be "
                f"told apart on {images} validation images."
            )
            continue
        more_macs = _more(_macs(dearer, macs) / _macs(cheaper, macs))
        gain = points(dearer.accuracy, cheaper.accuracy)
        if dearer.accuracy > cheaper.accuracy and more_macs:
            sentences.append(
                f"{large.name} gives {dearer.accuracy:.1%}, {small.name} {cheaper.accuracy:.1%}: "
                f"{gain} for {more_macs}."
            )
    for objective, own in selected:
        better, name = own, objective.name
        for other, estimate in selected:
            gains = estimate.accuracy > better.accuracy and _told_apart(estimate, own)
            keeps = fits(objective.constraints, estimate.candidate.row[None])[0]
            if gains and keeps and not _same(estimate, own):
                better, name = estimate, other.name
        if better is not own:
            sentences.append(
                f"The subnet of {name} keeps the limits of {objective.name} and is expected to be better: "
                f"{better.accuracy:.1%} against {own.accuracy:.1%}."
            )
    return sentences


def format_expected(accuracy: float, interval: tuple[float, float]) -> str:
    """An expected accuracy with its 90% interval: `94.6% (93.1 to 95.9)`."""
    return f"{100 * accuracy:.1f}% ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def points(more: float, less: float) -> str:
    """The difference of two accuracies in percentage points: `0.9 points`, `1 point`.

    It is that of the accuracies as they are printed, so that a reader who subtracts them finds the same.
    """
    written = f"{100 * (round(more, 3) - round(less, 3)):.1f}".removesuffix(".0")
    return f"{written} point" if written == "1" else f"{written} points"


def _more(ratio: float) -> str:
    """How many more MACs, in two digits: `3.3 times the MACs`, `12% more MACs`; empty if hardly more."""
    if ratio >= 1.5:
        return f"{float(f'{ratio:.2g}'):g} times the MACs"
    percent = round(100 * (ratio - 1))
    return f"{percent}% more MACs" if percent > 0 else ""


def _told_apart(one: Estimate, other: Estimate) -> bool:
    return told_apart(one.accuracy - other.accuracy, one.std, other.std)


def _same(one: Estimate, other: Estimate) -> bool:
    return one.candidate.row.tobytes() == other.candidate.row.tobytes()


def _macs(estimate: Estimate, macs: ArchCostFn) -> float:
    return float(macs(estimate.candidate.row[None])[0])
