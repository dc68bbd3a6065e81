"""Search a space with Optuna's TPE sampler, under a limit of MACs.

    python examples/optuna_tpe.py

The accuracy is made up, so that this runs in seconds. With a trained supernet it is
`trained.accuracy(arch, "val")` of `trained = ofa.TrainedSupernet(Path("runs/photos"), torch.device("cpu"))`.
"""

import math

import numpy as np
import optuna

import ofa
from predictors import Constraint, set_constraints, suggest

SPACE = ofa.load_space("digits")


def macs(codes: np.ndarray) -> np.ndarray:
    """Multiply-accumulates of encoded architectures (N, F)."""
    return ofa.costs_of(SPACE, codes, classes=10, channels=1).macs


def accuracy(arch: ofa.Arch) -> float:
    """Made up: larger is better, and less so the larger it is. Measure it instead."""
    return 1 - 1 / math.log(macs(ofa.encode(SPACE, arch)[None])[0])


def objective(trial: optuna.Trial) -> float:
    """What the study maximises. The sampler learns from the constraint to stay under the limit."""
    arch = suggest(trial, SPACE)
    set_constraints(trial, [Constraint("macs", 300_000, macs)], ofa.encode(SPACE, arch))
    return accuracy(arch)


def main() -> None:
    """Run 60 trials and print the best that keeps the limit."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=60)
    arch = suggest(optuna.trial.FixedTrial(study.best_params), SPACE)
    print(f"{macs(ofa.encode(SPACE, arch)[None])[0]:,} MACs: {study.best_value:.4f}")
    print(arch)


if __name__ == "__main__":
    main()
