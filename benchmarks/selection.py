"""The best predicted accuracy under limits, evaluations and seconds: ours and the reference evolutions.

python benchmarks/selection.py --measured FOLDER [--problem imagenet note10 made-up] [--ways ...] [--seeds 5]

imagenet: `ofa_mbv3` with all 25 resolutions. The predictor is a Gaussian process of 400 OFA subnets measured
    on ImageNet at 224 px (FOLDER, CSV files with columns `Sub-network` and `Top-1 Acc (%)`) plus a term for
    the resolution: 0.05 times its logarithm. Latency is made up.
note10: the same predictor and the wider space at 160, 192 and 224 px, with OFA's latency tables of a Samsung
    Note10 (--lut).
made-up: `attentive_nas`; nothing is published of it, so accuracies are made up, with effects of every choice
    and of pairs of choices.

Limits are budgets of MACs from just above the smallest to just below the largest, and several limits at once.
The figures of each set of limits are means over the seeds and, in brackets, ours in its worst seed and the
others in their best. Seconds are CPU time without fitting the predictor.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from reference_searches import alphanet_search, ofa_search
from selection_problems import Problem, counted, imagenet, limit_sets, made_up, named

from ofa.space.codes import canonical
from ofa.space.space import Space
from predictors.search.best import find_best
from predictors.search.constraints import Constraint, ScoreFn, fits

# The score that a search reaches: (problem with a counted score, limits, random generator).
SearchFn = Callable[[Problem, Sequence[Constraint], np.random.Generator], float]
NEAR = 0.8  # of the budget of MACs: the lower end of a narrow range
LONG = 120  # generations of AlphaNet's search that take about as many evaluations as ours


def ours(problem: Problem, limits: Sequence[Constraint], rng: np.random.Generator) -> float:
    found = find_best(problem.space, problem.score, limits, rng)
    assert fits(limits, found).all()
    return float(problem.score(found[:1])[0])


def ofa(problem: Problem, limits: Sequence[Constraint], rng: np.random.Generator) -> float:
    return ofa_search(problem.space, problem.score, limits, rng)


def alphanet(
    least_share: float,
    generations: int,
    problem: Problem,
    limits: Sequence[Constraint],
    rng: np.random.Generator,
) -> float:
    # The first limit is that of MACs.
    least = least_share * limits[0].limit
    macs = problem.costs["macs"]
    return alphanet_search(problem.space, problem.score, limits, rng, macs, least, generations)


def with_optuna(
    sampler: Callable[..., optuna.samplers.BaseSampler],
    trials: int,
    problem: Problem,
    limits: Sequence[Constraint],
    rng: np.random.Generator,
) -> float:
    space: Space = problem.space
    score: ScoreFn = problem.score

    def objective(trial: optuna.Trial) -> float:
        row = []
        for c in space.columns:
            row.append(1 + trial.suggest_int(f"{c.field}[{c.position}]", 0, len(c.values) - 1))
        codes = canonical(space, np.array([row], np.uint8))
        for limit in limits:
            trial.set_constraint(limit.name, float(limit.cost(codes)[0] - limit.limit))
        return float(score(codes)[0])

    study = optuna.create_study(direction="maximize", sampler=sampler(seed=int(rng.integers(2**31))))
    study.optimize(objective, n_trials=trials)
    reached = [float("nan")]
    for trial in study.trials:
        if trial.value is not None and max(trial.constraints.values()) <= 0:
            reached.append(trial.value)
    return float(np.nanmax(reached)) if len(reached) > 1 else float("nan")


def ways(trials: int) -> dict[str, SearchFn]:
    """All searches by name."""
    return {
        "ours": ours,
        "ofa": ofa,
        "alphanet": partial(alphanet, 0.0, 20),
        "alphanet-long": partial(alphanet, 0.0, LONG),
        "attentive-near": partial(alphanet, NEAR, LONG),
        "optuna-random": partial(with_optuna, optuna.samplers.RandomSampler, trials),
        "optuna-nsga2": partial(with_optuna, optuna.samplers.NSGAIISampler, trials),
        "optuna-tpe": partial(with_optuna, optuna.samplers.TPESampler, trials // 4),
    }


def compare(
    problem: Problem, sets: Sequence[Sequence[Constraint]], searches: dict[str, SearchFn], seeds: int
) -> None:
    """Print a table: a row for each set of limits, a column for each search."""
    print("| limits | " + " | ".join(searches) + " |\n" + "|---" * (len(searches) + 1) + "|", flush=True)
    evaluations = {name: list[int]() for name in searches}
    seconds = {name: list[float]() for name in searches}
    for limits in sets:
        cells = []
        for name, search in searches.items():
            reached = []
            for seed in range(seeds):
                score, count = counted(problem.score)
                started = time.process_time()
                value = search(problem._replace(score=score), limits, np.random.default_rng(seed))
                seconds[name].append(time.process_time() - started)
                evaluations[name].append(count())
                reached.append(100 * value)
            extreme = min(reached) if name == "ours" else max(reached)
            cells.append(f"{np.mean(reached):.3f} ({extreme:.3f})")
        print(f"| {named(limits)} | " + " | ".join(cells) + " |", flush=True)
    asked = [f"{np.mean(evaluations[name]):,.0f}" for name in searches]
    spent = [f"{np.mean(seconds[name]):.2f} (at most {max(seconds[name]):.2f})" for name in searches]
    print(
        "| evaluations | " + " | ".join(asked) + " |\n| CPU seconds | " + " | ".join(spent) + " |", flush=True
    )


def main() -> None:
    summary = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=summary)
    parser.add_argument("--measured", type=Path, help="folder of measured OFA subnets")
    parser.add_argument("--lut", type=Path, help="folder of OFA's latency tables of a Note10")
    parser.add_argument("--problem", nargs="+", default=["made-up"], help="imagenet, note10, made-up")
    default = ["ours", "ofa", "alphanet", "alphanet-long", "attentive-near"]
    parser.add_argument("--ways", nargs="+", default=default, help="searches: " + ", ".join(ways(0)))
    parser.add_argument("--trials", type=int, default=2_000, help="of Optuna; a quarter of it of TPE")
    parser.add_argument("--sets", type=int, nargs="+", help="which sets of limits, from 0; none: all")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searches = {name: ways(args.trials)[name] for name in args.ways}
    for name in args.problem:
        if name == "made-up":
            problem = made_up()
        else:
            problem = imagenet(args.measured, "gp", args.lut if name == "note10" else None)
        print(f"\n{name}, {args.seeds} seeds\n", flush=True)
        sets = limit_sets(problem)
        compare(problem, [sets[i] for i in args.sets or range(len(sets))], searches, args.seeds)


if __name__ == "__main__":
    main()
