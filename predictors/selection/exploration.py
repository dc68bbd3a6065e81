"""One objective, explored on its own: what is measured for it, and what to expect of that.

Every objective starts from the collected pairs, has a copy of the predictor and random numbers of its own,
and learns from its own study only. Accuracies that other studies measured are not measured again, but teach
it nothing and do not compete. So what is selected for a budget does not depend on which other budgets were
asked for, in this command or before.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

from engine.seed import numpy_generator
from predictors.accuracy.features import features
from predictors.accuracy.models import PredictorChoice, PredictorName, make_predictor
from predictors.accuracy.predictor import Predictor
from predictors.accuracy.validation import CandidateQuality, candidates, compare_candidates, print_candidates
from predictors.search.constraints import ArchCostFn, Objective
from predictors.selection.coarse_to_fine import coarse_to_fine
from predictors.selection.evaluations import EvaluateFn, Evaluations
from predictors.selection.intervals import Intervals, OwnQuality
from predictors.selection.posterior import Estimate, estimate, under
from predictors.selection.predictor_guided import BestProposer, FrontProposer, Proposer, predictor_guided


class Guide(NamedTuple):
    """What guides a search: a predictor that learned from so many collected pairs, and how good it is."""

    predictor: Predictor
    quality: CandidateQuality
    pairs: int


class Explored(NamedTuple):
    """Everything that one objective's exploration found.

    objective: what was to be found.
    evaluations: the collected pairs and what its own study measured.
    estimates: of all these subnets.
    own: how good the predictions of its candidates were; None where nothing was predicted.
    """

    objective: Objective
    evaluations: Evaluations
    estimates: Sequence[Estimate]
    own: OwnQuality | None

    def best(self, count: int) -> list[Estimate]:
        """The `count` subnets under the limits to expect most of."""
        return under(self.estimates, self.objective.constraints)[:count]


def make_guide(choice: PredictorChoice, evaluations: Evaluations, macs: ArchCostFn, seed: int) -> Guide:
    """The predictor that is best in cross-validation, fitted; all that compete are printed.

    Args:
        choice: a predictor, or "auto".
        evaluations: the collected pairs.
        macs: multiply-accumulates of encoded architectures.
        seed: of the folds and the predictors.

    Raises:
        UserError: the pairs are too few to learn from.
    """
    codes, y = evaluations.training_set()
    X = features(evaluations.space, codes)
    qualities = compare_candidates(choice, X, y, macs(codes), seed)
    print_candidates(qualities, y)
    return Guide(make_predictor(qualities[0].member).fit(X, y, seed), qualities[0], len(y))


def explore_by_predictions(
    evaluations: Evaluations,
    objective: Objective,
    guide: Guide,
    count: int,
    seed: int,
    evaluate: EvaluateFn,
) -> Intervals:
    """Measure the subnets that a copy of the predictor proposes for one objective; see `predictor_guided`.

    Args:
        evaluations: the collected pairs, and what others added to the study; what is measured is added.
        objective: what is to be found.
        guide: the predictor, which stays as it is.
        count: how many subnets to measure.
        seed: of the search.
        evaluate: measures subnets.

    Returns:
        The intervals, which know how good the predictions were.
    """
    # Streams are named by the objective and not drawn in the order of objectives.
    rng = numpy_generator(seed, "search", objective.name)
    propose: Proposer = BestProposer(objective.constraints, rng)
    if objective.front:
        propose = FrontProposer(list(objective.front.values()), objective.constraints, rng)
    intervals = Intervals(guide.quality)
    predictor = deepcopy(guide.predictor)
    if len(evaluations) > guide.pairs:  # a notebook has added trials to the study
        codes, y = evaluations.training_set()
        predictor.update(features(evaluations.space, codes), y)
    predictor_guided(evaluations, predictor, intervals, propose, evaluate, count)
    return intervals


def explore_coarse_to_fine(
    evaluations: Evaluations, objective: Objective, count: int, seed: int, evaluate: EvaluateFn
) -> None:
    """Measure subnets of a coarse grid for one objective, then mutants of the best; see `coarse_to_fine`."""
    rng = numpy_generator(seed, "coarse to fine", objective.name)
    coarse_to_fine(evaluations, objective.constraints, count, rng, evaluate)


def estimate_all(
    evaluations: Evaluations, measured: Mapping[bytes, float], member: PredictorName | None, seed: int
) -> list[Estimate]:
    """The accuracy to expect of every subnet that an objective knows.

    Args:
        evaluations: the collected pairs and what this command measured or looked up.
        measured: accuracies of all trials of the objective's study, by the bytes of the row of codes. They
            may be of earlier commands, of other processes, or added with Optuna's tools.
        member: the predictor; None: the favourite for so many subnets.
        seed: of the predictor.
    """
    evaluations.add_measured(measured)
    return estimate(evaluations, member or candidates("auto", len(evaluations))[0], seed)
