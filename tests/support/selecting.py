"""A selection without a supernet, which several processes run on one storage.

It makes trials of 20 pairs, takes up what was enqueued, and measures 12 subnets in three rounds; each
measurement takes 50 ms.
"""

import json
import time
from pathlib import Path

import numpy as np

from ofa.cost import costs_of
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import load_space
from predictors.search.constraints import Constraint, Objective
from predictors.selection.evaluations import Prediction
from predictors.studies.storage import open_storage
from predictors.studies.study import Study

PAIRS, CANDIDATES, ROUND = 20, 12, 4
NAME = "tiny-1"


def accuracy_of(row: Codes) -> float:
    """Different for every architecture."""
    return 0.5 + int.from_bytes(row.tobytes(), "big") % 9973 / 20_000


def rows_of(space_file: str) -> list[Codes]:
    """The same architectures in every process: pairs first, then candidates."""
    drawn = sample_codes(load_space(space_file), 1_000, np.random.default_rng(0))
    return list(np.unique(drawn, axis=0)[: PAIRS + CANDIDATES])


def main(space_file: str, address: str, out: str) -> None:
    """Select, and write what was measured and the choice to `out`."""
    space, rows = load_space(space_file), rows_of(space_file)
    measured: list[str] = []

    def macs(codes: Codes) -> np.ndarray:
        return costs_of(space, codes, 10, 1).macs

    def measure(row: Codes) -> float:
        measured.append(row.tobytes().hex())
        time.sleep(0.05)
        return accuracy_of(row)

    objective = Objective.best([Constraint("macs", float(np.median(macs(np.stack(rows)))), macs)])
    study = Study(open_storage(address), NAME, space, objective, measure, {"macs": macs}, {"run": "tiny"})
    heard: list[float] = []
    study.add_pairs(rows[:PAIRS], [accuracy_of(row) for row in rows[:PAIRS]])
    study.added(heard.append)
    for start in range(PAIRS, len(rows), ROUND):
        part = rows[start : start + ROUND]
        assert study.measure(part, [Prediction(0.5, 0.1)] * len(part), heard.append) == list(
            map(accuracy_of, part)
        )
    study.finish()
    known = study.known()
    best = max(known, key=lambda row: known[row])
    Path(out).write_text(json.dumps({"choice": best.hex(), "known": len(known), "measured": measured}))
