"""Stage 2: from a trained supernet to the best subnet for a budget, in seconds.

The commands are predictors.collect, select, measure and report. The functions under them need no run folder.
From measured accuracies to the best architecture of at most 300k MACs:

    import numpy as np
    import ofa
    from predictors import Constraint, features, find_best, make_predictor

    space, rng = ofa.load_space("digits"), np.random.default_rng(0)
    codes = ofa.sample_codes(space, 60, rng)
    accuracies = rng.uniform(0.8, 0.9, 60)  # made up; measure them
    predictor = make_predictor("gp").fit(features(space, codes), accuracies, seed=0)

    def score(codes):
        return predictor.mean(features(space, codes))

    def macs(codes):
        return ofa.costs_of(space, codes, classes=10, channels=1).macs

    best = find_best(space, score, [Constraint("macs", 300_000, macs)], rng, seeds=codes)
    print(ofa.decode(space, best[0]))

With Optuna's samplers, or one of your own, instead of `find_best`: `distributions`, `suggest`,
`set_constraints`, `codes_from_params` (examples/optuna_tpe.py, examples/optuna_sampler.py).
"""

from typing import TYPE_CHECKING

from engine.command.start import start
from engine.lazy import lazy_names

if TYPE_CHECKING:
    from engine.statistics import pareto_front
    from predictors.accuracy.features import features
    from predictors.accuracy.gaussian_process import GaussianProcess
    from predictors.accuracy.models import make_predictor
    from predictors.accuracy.pairs import Pair, read_pairs
    from predictors.latency.model import load_latency
    from predictors.search.best import find_best
    from predictors.search.constraints import Constraint
    from predictors.search.costs import cost_functions
    from predictors.search.front import find_front
    from predictors.search.optuna_space import (
        codes_from_params,
        distributions,
        params_from_codes,
        set_constraints,
        suggest,
    )
    from predictors.selection.evaluations import Evaluations
    from predictors.studies.storage import open_studies

__all__ = [
    "Constraint",
    "Evaluations",
    "GaussianProcess",
    "Pair",
    "codes_from_params",
    "cost_functions",
    "distributions",
    "features",
    "find_best",
    "find_front",
    "load_latency",
    "make_predictor",
    "open_studies",
    "params_from_codes",
    "pareto_front",
    "read_pairs",
    "set_constraints",
    "suggest",
]

# On first use, so that `import predictors` imports neither torch nor scikit-learn nor Optuna.
__getattr__ = lazy_names(
    __name__,
    {
        "Constraint": "predictors.search.constraints",
        "Evaluations": "predictors.selection.evaluations",
        "GaussianProcess": "predictors.accuracy.gaussian_process",
        "Pair": "predictors.accuracy.pairs",
        "codes_from_params": "predictors.search.optuna_space",
        "cost_functions": "predictors.search.costs",
        "distributions": "predictors.search.optuna_space",
        "features": "predictors.accuracy.features",
        "find_best": "predictors.search.best",
        "find_front": "predictors.search.front",
        "load_latency": "predictors.latency.model",
        "make_predictor": "predictors.accuracy.models",
        "open_studies": "predictors.studies.storage",
        "params_from_codes": "predictors.search.optuna_space",
        "pareto_front": "engine.statistics",
        "read_pairs": "predictors.accuracy.pairs",
        "set_constraints": "predictors.search.optuna_space",
        "suggest": "predictors.search.optuna_space",
    },
)

start()
