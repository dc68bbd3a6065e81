"""Seconds to draw and to cost a million architectures of each packaged space.

python benchmarks/million_costs.py
"""

import time

import numpy as np

from ofa.cost import costs_of
from ofa.space.codes import sample_codes
from ofa.space.space import load_space

MILLION = 10**6


def main() -> None:
    for name in ("digits", "small128", "bignas", "attentive_nas", "ofa_mbv3"):
        space = load_space(name)
        started = time.perf_counter()
        codes = sample_codes(space, MILLION, np.random.default_rng(0))
        drawn = time.perf_counter()
        costs_of(space, codes, 1000, 3)
        print(f"{name:14} drawn in {drawn - started:.2f} s, costed in {time.perf_counter() - drawn:.2f} s")


if __name__ == "__main__":
    main()
