"""Points that a search loses to the exact optimum of an additive score, which a MILP finds (HiGHS).

python benchmarks/exact_optimum.py --measured FOLDER [--lut FOLDER] [--seeds 5]

The space is `ofa_mbv3`. The score is a ridge regression of 400 OFA subnets measured on ImageNet at 224 px
(FOLDER, as of benchmarks/selection.py) on its own scale, plus a term for the resolution. Limits are those of
benchmarks/selection.py without memory, which is no sum: of all 25 resolutions with a made-up latency and,
with --lut, of `ofa_mbv3_w1.2` at three resolutions with OFA's latency tables of a Samsung Note10.

The MILP is written apart from the search: a binary variable for each state of each group of layers, an
equation for each choice that two groups share, a row for each limit. It is solved for each resolution.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix
from selection_problems import Problem, imagenet, limit_sets, named

from engine.statistics import Floats
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.best import find_best
from predictors.search.constraints import Constraint, fits
from predictors.search.decompose import decompose, groups_of_layers
from predictors.search.dynamic_programming import first_read, fit_additive

SCALE = 1e4  # of a limit in the MILP: HiGHS allows 1e-6 more, which is then 1e-10 of the limit


class State(NamedTuple):
    """What one group of layers may be at one resolution: a variable of the MILP.

    codes: the code of each column that the group reads; 0 for the choices of a block that is not there.
    gain: what the group adds to the score.
    costs: what it adds to each cost, as a share of the limit.
    """

    group: int
    codes: dict[int, int]
    gain: float
    costs: list[float]


def states_at(
    space: Space, gains: Sequence[Floats], tables: Sequence[Sequence[Floats]], resolution: int
) -> Iterator[State]:
    """The states of all groups at one resolution (its code)."""
    groups = groups_of_layers(space)
    for i, (group, own) in enumerate(zip(groups, first_read(groups), strict=True)):
        choices = [range(1, len(space.columns[c].values) + 1) for c in group.columns[1:]]
        for chosen in product(*choices):
            codes = dict(zip(group.columns, (resolution, *chosen), strict=True))
            place, option = tuple(code - 1 for code in codes.values()), 0
            for c in own:
                option = option * len(space.columns[c].values) + codes[c] - 1
            gain, costs = float(gains[i][option]), [float(table[i][place]) for table in tables]
            if is_asleep(space, codes):
                if option:
                    continue  # the first option stands for all
                gain, codes = 0.0, codes | dict.fromkeys(own, 0)
            yield State(i, codes, gain, costs)


def is_asleep(space: Space, codes: dict[int, int]) -> bool:
    """Whether these are codes of a block past the depth of its stage."""
    for c in codes:
        column = space.columns[c]
        if column.field == "kernel" and space.granularity == "block":
            stage = space.slot_stage[column.position]
            depth = space.stages[stage].depth[codes[space.column_index["depth", stage]] - 1]
            return column.position - space.slot(stage, 0) >= depth
    return False


def optimum_at(space: Space, states: Sequence[State]) -> tuple[float, Codes | None]:
    """The highest gain of one resolution and its architecture; None if none keeps the limits."""
    rows: list[tuple[dict[int, float], float, float]] = []  # coefficients by variable, lower and upper bound
    of_group: dict[int, list[int]] = {}
    for j, state in enumerate(states):
        of_group.setdefault(state.group, []).append(j)
    rows += [(dict.fromkeys(members, 1.0), 1, 1) for members in of_group.values()]
    last: dict[int, int] = {}  # the last group that reads a column
    for group, members in of_group.items():
        for c in states[members[0]].codes:
            # Two groups that read a column agree in it: each code is chosen as often in one as in the other.
            for code in range(1, len(space.columns[c].values)) if c in last else ():
                ours = {j: 1.0 for j in members if states[j].codes[c] == code}
                theirs = {j: -1.0 for j in of_group[last[c]] if states[j].codes[c] == code}
                rows.append((ours | theirs, 0, 0))
            last[c] = group
    for k in range(len(states[0].costs)):
        rows.append(({j: SCALE * state.costs[k] for j, state in enumerate(states)}, -np.inf, SCALE))
    matrix = lil_matrix((len(rows), len(states)))
    for i, (row, _, _) in enumerate(rows):
        for j, value in row.items():
            matrix[i, j] = value
    bounds = np.array([(low, high) for _, low, high in rows])
    found = milp(
        -np.array([state.gain for state in states]),
        constraints=LinearConstraint(matrix.tocsr(), bounds[:, 0], bounds[:, 1]),
        integrality=np.ones(len(states)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return -np.inf, None
    best = np.zeros(len(space.columns), np.uint8)
    for j in np.flatnonzero(found.x > 0.5):
        best[list(states[j].codes)] = list(states[j].codes.values())
    return -float(found.fun), best


def optimum(problem: Problem, gains: Sequence[Floats], limits: Sequence[Constraint]) -> Codes:
    """The optimum of all resolutions, (1, F)."""
    tables = []
    for limit in limits:
        found = decompose(problem.space, limit.cost)
        assert found and not found.is_maximum
        tables.append([part.cost / limit.limit for part in found.parts])
    best = []
    for resolution in range(1, len(problem.space.resolution) + 1):
        states = list(states_at(problem.space, gains, tables, resolution))
        gain, row = optimum_at(problem.space, states)
        if row is not None:
            best.append((gain, row))
    return max(best, key=lambda pair: pair[0])[1][None]


def compare(problem: Problem, seeds: int) -> None:
    """Print a row for each set of limits."""
    rng = np.random.default_rng(0)
    gains = fit_additive(problem.space, problem.score, groups_of_layers(problem.space), rng)
    print(
        "| limits | optimum | most lost | seconds, ours | seconds, MILP |\n|---|---|---|---|---|", flush=True
    )
    for limits in limit_sets(problem):
        sums = [limit for limit in limits if limit.name != "memory"]
        started = time.process_time()
        best = optimum(problem, gains, sums)
        assert fits(sums, best).all()
        middle = time.process_time()
        lost = []
        for seed in range(seeds):
            found = find_best(problem.space, problem.score, sums, np.random.default_rng(seed))
            assert fits(sums, found).all()
            lost.append(float(problem.score(best)[0] - problem.score(found[:1])[0]))
        ours, theirs = (time.process_time() - middle) / seeds, middle - started
        values = f"{100 * problem.score(best)[0]:.4f} | {100 * max(lost):.1e} | {ours:.2f} | {theirs:.1f}"
        print(f"| {named(sums)} | {values} |", flush=True)


def main() -> None:
    summary = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=summary)
    parser.add_argument("--measured", type=Path, required=True, help="folder of measured OFA subnets")
    parser.add_argument("--lut", type=Path, help="folder of OFA's latency tables of a Note10")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    compare(imagenet(args.measured, "ridge"), args.seeds)
    if args.lut:
        compare(imagenet(args.measured, "ridge", args.lut), args.seeds)


if __name__ == "__main__":
    main()
