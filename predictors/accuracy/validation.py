"""Which accuracy predictor to take: how well each one predicts pairs that it has not seen."""

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import kendalltau
from sklearn.model_selection import KFold

from engine.command.table import show
from engine.seed import derive, numpy_generator
from engine.statistics import Floats, better_than_chance, conformal_quantile, tau_in_bands
from predictors.accuracy.models import PredictorChoice, PredictorName, make_predictor
from predictors.accuracy.predictor import LEAST_STD, Features

MANY_FOLDS_BELOW = 100  # below so many pairs 10 folds, which leave more of the few pairs to learn from
MOST_PAIRS = 500  # in cross-validation, so that it takes seconds at any size
LEAD = 0.01  # of Kendall's tau: another predictor must lead the favourite by so much


class CandidateQuality(NamedTuple):
    """What cross-validation says of one predictor.

    member: its name in `predictors.accuracy.models.PREDICTORS`.
    tau: Kendall's tau-b of predicted and measured accuracies.
    tau_in_bands: the same among subnets of similar MACs.
    typical_miss: median of |measured - predicted|, in accuracy.
    widening: half of a 90% interval, in units of `predictive_std`.
    coverage: share of the measurements in intervals that the other folds decided.
    ratios: |measured - predicted| in units of `predictive_std`, of each of the N pairs.
    seconds: CPU time of the cross-validation.
    """

    member: PredictorName
    tau: float
    tau_in_bands: float
    typical_miss: float
    widening: float
    coverage: float
    ratios: Floats
    seconds: float

    def facts(self) -> dict[str, Any]:
        """What selected/*.json says of the predictor. Where subnets cannot be ranked, tau is None."""
        # No seconds: the same command has to write the same file again.
        facts = {name: getattr(self, name) for name in ("member", "tau", "tau_in_bands", "typical_miss")}
        for name in ("tau", "tau_in_bands"):
            if np.isnan(facts[name]):
                facts[name] = None
        return facts | {"widening": self.widening, "coverage": self.coverage}

    def half_width(self, std: Floats) -> Floats:
        """Half of the 90% interval around predictions with these standard deviations, (N,)."""
        return self.widening * predictive_std(std, self.typical_miss)


def predictive_std(std: Floats, typical_miss: float) -> Floats:
    """How far off predictions may be, (N,): their standard deviations and the typical miss together.

    A predictor that learned from few pairs can be too sure of itself; the typical miss bounds it from below.
    """
    # LEAST_STD: misses are divided by this, and where all subnets measured alike there are none.
    return np.sqrt(std**2 + typical_miss**2 + LEAST_STD**2)


def candidates(choice: PredictorChoice, pairs: int) -> tuple[PredictorName, ...]:
    """The predictors that compete for so many pairs, the favourite first; only `choice` if it is not "auto".

    Those that have never come near the best one with so few pairs do not compete (docs/log.md).
    """
    if choice != "auto":
        return (choice,)
    # The limits are where each one came near the best on measured ImageNet subnets.
    if pairs < 30:
        return ("ridge",)
    if pairs < 300:
        return ("gp", "ridge")
    if pairs < 1_000:
        return ("gp", "ridge", "mlp")
    if pairs <= 2_000:
        return ("gp", "ridge", "mlp", "boosting")
    # No Gaussian process: its time grows with the cube of the pairs.
    if pairs <= 20_000:
        return ("mlp", "ridge", "boosting")
    # A fit of the networks takes 1.4 ms of CPU time a pair, so minutes here; that of trees a twentieth of it.
    return ("boosting", "ridge")


def compare_candidates(
    choice: PredictorChoice, X: Features, y: Floats, macs: NDArray[Any], seed: int
) -> list[CandidateQuality]:
    """The quality of every candidate, the one to take first.

    That is the favourite, unless another one has a tau that is higher by 0.01. If there are more than 500
    pairs, all candidates are judged by the same random 500 of them.

    Args:
        choice: a predictor, or "auto" for those of `candidates`.
        X: features (N, D).
        y: measured accuracies (N,).
        macs: multiply-accumulates (N,).
        seed: of the folds, the predictors and the 500 pairs.
    """
    names = candidates(choice, len(y))
    if len(y) > MOST_PAIRS:
        some = np.sort(numpy_generator(seed, "judges").permutation(len(y))[:MOST_PAIRS])
        X, y, macs = X[some], y[some], macs[some]
    found = [cross_validate(name, X, y, macs, seed) for name in names]
    # Tau is not a number where all accuracies are equal: such a candidate comes last.
    merit = np.nan_to_num([quality.tau for quality in found], nan=-1.0)
    merit[0] += LEAD
    return [found[i] for i in np.argsort(-merit, kind="stable")]


def cross_validate(
    name: PredictorName, X: Features, y: Floats, macs: NDArray[Any], seed: int
) -> CandidateQuality:
    """Predict every pair from the other folds: 5 folds, or 10 below 100 pairs.

    The interval is as wide as the conformal quantile of |measured - predicted| / predictive_std says, so 90%
    of new pairs that are drawn like these ones fall into it (Lei et al., Distribution-free predictive
    inference for regression, 2018, arXiv:1604.04173; here with the residuals of all folds instead of those of
    one split).

    Args:
        name: of the predictor.
        X: features (N, D).
        y: measured accuracies (N,).
        macs: multiply-accumulates (N,).
        seed: of the folds and of the predictor.
    """
    # CPU time hardly sees other programs on the machine.
    started = time.process_time()
    folds = 10 if len(y) < MANY_FOLDS_BELOW else 5
    mean, std, fold = predict_from_other_folds(name, X, y, seed, folds)
    misses = np.abs(y - mean)
    typical_miss = float(np.median(misses))
    ratios = misses / predictive_std(std, typical_miss)
    return CandidateQuality(
        name,
        tau=float(kendalltau(y, mean).statistic),
        tau_in_bands=tau_in_bands(y, mean, macs),
        typical_miss=typical_miss,
        widening=conformal_quantile(ratios),
        coverage=float(np.mean(ratios <= widening_by_other_folds(ratios, fold))),
        ratios=ratios,
        seconds=time.process_time() - started,
    )


def widening_by_other_folds(ratios_N: Floats, fold_N: NDArray[np.int64]) -> Floats:
    """(N,) half of the interval of each pair, in units of `predictive_std`.

    The misses of the other folds decide it: a pair has no part in the width of its own interval, so the share
    of pairs inside is a check and not a definition.

    Args:
        ratios_N: |measured - predicted| in units of `predictive_std`.
        fold_N: the fold of each pair.
    """
    widening_N = np.empty_like(ratios_N)
    for fold in np.unique(fold_N):
        widening_N[fold_N == fold] = conformal_quantile(ratios_N[fold_N != fold])
    return widening_N


def predict_from_other_folds(
    name: PredictorName, X: Features, y: Floats, seed: int, folds: int, refit: bool = True
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Predict every pair from the pairs of the other folds.

    Args:
        name: of the predictor.
        X: features (N, D).
        y: measured accuracies (N,).
        seed: of the folds and of the predictor.
        folds: how many folds.
        refit: whether each fold finds its own hyper-parameters. Without, all have those of all pairs: much
            faster, and a few numbers tell hardly anything of one pair.

    Returns:
        (mean, standard deviation, fold), (N,) each.
    """
    predictor = make_predictor(name)
    if not refit:
        predictor.fit(X, y, seed)
    mean, std, fold = np.empty_like(y), np.empty_like(y), np.empty(len(y), np.int64)
    # scikit-learn takes seeds of 32 bits.
    splits = KFold(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32).split(X)
    for i, (train, held_out) in enumerate(splits):
        if refit:
            predictor.fit(X[train], y[train], seed)
        else:
            predictor.update(X[train], y[train])
        mean[held_out], std[held_out] = predictor.predict(X[held_out])
        fold[held_out] = i
    return mean, std, fold


def print_candidates(qualities: list[CandidateQuality], y: Floats) -> None:
    """Print the qualities as a table, in which the first predictor is the one that is taken.

    Args:
        qualities: what `compare_candidates` returns.
        y: the measured accuracies (N,).
    """
    if np.ptp(y) == 0:
        print(f"All {len(y)} subnets measured alike: {y[0]:.2%}. No predictor can rank them.")
        return
    print(f"accuracy predictor, cross-validated on {min(len(y), MOST_PAIRS)} of {len(y)} measured subnets:")
    table = Table("predictor", "Kendall tau", "at similar MACs", "typical miss", "seconds")
    for i, quality in enumerate(qualities):
        table.add_row(
            f"{quality.member} (chosen)" if i == 0 else quality.member,
            format_tau(quality.tau),
            format_tau(quality.tau_in_bands),
            f"{100 * quality.typical_miss:.2f}%",
            f"{quality.seconds:.1f}",
        )
    show(table)


def format_tau(tau: float | None) -> str:
    """Kendall's tau with three digits; a dash where there was nothing to rank."""
    return "-" if tau is None or np.isnan(tau) else f"{tau:.3f}"


def chance_sentence(tau: float, subnets: int, images: int) -> str:
    """That a ranking of collected subnets on so many validation images says nothing; empty if it does."""
    if better_than_chance(tau, subnets):
        return ""
    return (
        f"The predictor ranks the {subnets} collected subnets no better than chance: they cannot be told "
        f"apart on {images} validation images, or it has too few to learn from."
    )
