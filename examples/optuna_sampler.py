"""Let a sampler of your own propose architectures, in a study of its own or in one of predictors.select.

    python examples/optuna_sampler.py                                    # with a made-up accuracy
    python examples/optuna_sampler.py runs/digits/optuna.journal STUDY   # ten proposals for select to measure

The sampler changes one choice of the best trial so far. In the second form it learns from the trials of
select, and what it proposes is enqueued: the same `python -m predictors.select` as before measures it, and it
competes. `optuna.get_all_study_names(storage)` has the names of the studies.
"""

import random
import sys
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

import ofa
from predictors import Constraint, codes_from_params, distributions, open_studies, set_constraints

SPACE = ofa.load_space("digits")


class OneChange(BaseSampler):
    """Proposes the best parameters so far with one of them drawn anew; at first random ones."""

    def __init__(self, seed: int) -> None:
        self.rng, self.random = random.Random(seed), RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(distributions(SPACE))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        finished = study.get_trials(states=(TrialState.COMPLETE,))
        feasible = [t for t in finished if all(v <= 0 for v in t.constraints.values())]
        if not feasible:
            return {}
        params = dict(max(feasible, key=first_value).params)
        name, choices = self.rng.choice(sorted(distributions(SPACE).items()))
        return params | {name: self.rng.choice(choices.choices)}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        """Draw what the best trial does not have."""
        return self.random.sample_independent(study, trial, name, distribution)


def first_value(trial: FrozenTrial) -> float:
    """The accuracy of a trial; a front has costs as further values."""
    return trial.values[0]


def macs(codes: np.ndarray) -> np.ndarray:
    """Multiply-accumulates of encoded architectures (N, F)."""
    return ofa.costs_of(SPACE, codes, classes=10, channels=1).macs


def search() -> None:
    """Ask the sampler 40 times, and tell it an accuracy that is made up."""
    study = optuna.create_study(direction="maximize", sampler=OneChange(seed=0))
    for _ in range(40):
        trial = study.ask(distributions(SPACE))
        row = codes_from_params(SPACE, trial.params)
        set_constraints(trial, [Constraint("macs", 300_000, macs)], row)
        study.tell(trial, float(1 - 1 / np.log(macs(row[None])[0])))
    best = codes_from_params(SPACE, study.best_params)
    print(f"{macs(best[None])[0]:,} MACs: {study.best_value:.4f}")
    print(ofa.decode(SPACE, best))


def enqueue(journal: str, name: str) -> None:
    """Propose ten architectures to a study of predictors.select."""
    study = optuna.load_study(study_name=name, storage=open_studies(journal))
    # A copy: whoever asks a study for a trial has to measure it, and here select is to do that.
    copy = optuna.create_study(directions=study.directions, sampler=OneChange(seed=len(study.trials)))
    copy.add_trials(study.get_trials(states=(TrialState.COMPLETE,)))
    for _ in range(10):
        study.enqueue_trial(copy.ask(distributions(SPACE)).params, skip_if_exists=True)
    print("enqueued what is new of ten proposals; the same python -m predictors.select measures it")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if len(sys.argv) == 3:
        enqueue(*sys.argv[1:])
    else:
        search()
