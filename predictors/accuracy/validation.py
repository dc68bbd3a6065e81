"""How good accuracy predictors are on pairs they have not seen, how wide a 90% interval is, and which
predictor to take."""

import time
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from sklearn.model_selection import KFold

from engine.seed import derive, numpy_generator
from predictors.accuracy.models import Features, Floats, Member, make_predictor

Name = Literal["auto", "gp", "ridge", "boosting", "mlp"]
COVERAGE = 0.9
BAND = 10_000_000
MANY_FOLDS_BELOW = 100
JUDGED = 500
LEAD = 0.01


class Quality(NamedTuple):
    """What cross-validation says of one predictor.

    tau: Kendall's tau-b. typical_miss: median of |measured - predicted|. widening: half of a 90% interval, in
        units of `doubt`.
    """

    member: Member
    tau: float
    tau_in_bands: float
    typical_miss: float
    widening: float
    seconds: float

    def half_width(self, std: Floats) -> Floats:
        """Half of the 90% interval around predictions with these standard deviations."""
        return self.widening * doubt(std, self.typical_miss)


def doubt(std: Floats, typical_miss: float) -> Floats:
    """How far off a prediction may be: few pairs can make a predictor too sure of itself, and the typical
    miss keeps it humble."""
    return np.sqrt(std**2 + typical_miss**2)


def candidates(name: Name, pairs: int) -> tuple[Member, ...]:
    """Who competes, the favourite first. Those that have never come near the best with so few pairs do not
    (docs/log.md)."""
    if name != "auto":
        return (name,)
    if pairs < 30:
        return ("ridge",)
    if pairs > 2_000:
        return ("mlp", "ridge", "boosting")
    everybody: tuple[Member, ...] = ("gp", "ridge", "mlp", "boosting")
    return everybody[: 2 if pairs < 300 else 3 if pairs < 1_000 else 4]


def compare(name: Name, X: Features, y: Floats, macs: NDArray[Any], seed: int) -> list[Quality]:
    """Every candidate's quality, the one to take first: of highest tau, but the favourite unless another
    leads by 0.01.

    Of more than 500 pairs, the same random 500 judge all of them: it takes seconds at any size.
    """
    members = candidates(name, len(y))
    if len(y) > JUDGED:
        some = np.sort(numpy_generator(seed, "judges").permutation(len(y))[:JUDGED])
        X, y, macs = X[some], y[some], macs[some]
    found = [cross_validate(member, X, y, macs, seed) for member in members]
    lead = [LEAD * (i == 0) + np.nan_to_num(quality.tau, nan=-1.0) for i, quality in enumerate(found)]
    return [found[i] for i in np.argsort(-np.array(lead), kind="stable")]


def cross_validate(member: Member, X: Features, y: Floats, macs: NDArray[Any], seed: int) -> Quality:
    """Predict every pair from the other folds: 5 of them, or 10 below 100 pairs.

    The interval is as wide as the conformal quantile of |measured - predicted| / doubt says, so 90% of new
    pairs that are drawn like these ones fall into it (Lei et al., Distribution-free predictive inference for
    regression, 2018, arXiv:1604.04173; here with the residuals of all folds instead of one split's).
    """
    started = time.process_time()
    mean, std, _ = predict_from_other_folds(member, X, y, seed, 10 if len(y) < MANY_FOLDS_BELOW else 5)
    misses = np.abs(y - mean)
    typical = float(np.median(misses))
    widening = conformal_quantile(misses / doubt(std, typical))
    seconds = time.process_time() - started
    return Quality(
        member, float(kendalltau(y, mean).statistic), tau_in_bands(y, mean, macs), typical, widening, seconds
    )


def predict_from_other_folds(
    member: Member, X: Features, y: Floats, seed: int, folds: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """(mean, standard deviation, fold), (N,) each: every pair predicted from the pairs of the other folds."""
    mean, std, fold = np.empty_like(y), np.empty_like(y), np.empty(len(y), np.int64)
    for i, (train, held) in enumerate(
        KFold(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32).split(X)
    ):
        mean[held], std[held] = make_predictor(member).fit(X[train], y[train], seed).predict(X[held])
        fold[held] = i
    return mean, std, fold


def conformal_quantile(ratios: Floats) -> float:
    """What 90% of new ratios stay under that are drawn like these."""
    return float(np.sort(ratios)[min(len(ratios), int(np.ceil(COVERAGE * (len(ratios) + 1)))) - 1])


def near(macs: NDArray[Any]) -> float:
    """How far apart the MACs of two subnets of one size may be: 10M, or a twentieth of the range if that is
    less."""
    return min(BAND, float(np.ptp(macs)) / 20)


def tau_in_bands(y: Floats, predicted: Floats, macs: NDArray[Any]) -> float:
    """Kendall's tau-b over those pairs of subnets that are `near`.

    What a choice under a budget needs: MACs alone rank subnets of all sizes well, and subnets of one size not
    at all. Not a number if there is no such pair, or all of them tie.
    """
    first, second = np.triu_indices(len(y), 1)
    close = np.abs(macs[first] - macs[second]) <= near(macs)
    a, b = (np.sign(v[first[close]] - v[second[close]]) for v in (y, predicted))
    ties = np.sqrt(float(np.count_nonzero(a)) * np.count_nonzero(b))
    return float(a @ b / ties) if ties else float("nan")


def show(qualities: list[Quality], pairs: int) -> None:
    """Print them as a table, the chosen one first."""
    print(f"accuracy predictor, cross-validated on {min(pairs, JUDGED)} of {pairs} measured subnets:")
    table = Table("predictor", "Kendall tau", "at similar MACs", "typical miss", "seconds")
    for q in qualities:
        name = f"{q.member} (chosen)" if q is qualities[0] else q.member
        table.add_row(
            name, f"{q.tau:.3f}", f"{q.tau_in_bands:.3f}", f"{100 * q.typical_miss:.2f}%", f"{q.seconds:.1f}"
        )
    Console().print(table)
