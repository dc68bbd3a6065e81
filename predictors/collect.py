"""Measure subnets of a trained supernet: pairs of (architecture, validation accuracy) that the accuracy predictor learns from."""

from collections.abc import Iterator
from itertools import chain, zip_longest

import numpy as np
from pydantic import Field

from engine.cli import main
from engine.config import format_count
from engine.interrupt import stop_on_signal
from engine.progress import progress
from engine.run import append_line, write_lines
from engine.seed import numpy_generator
from ofa.space import Codes, decode, encode, largest, sample_codes, smallest
from ofa.trained import RunCommand, Trained, run_flag
from predictors.pairs import Pair, pairs_path, read_pairs

POOL = 100_000
BINS = 20


class Collect(RunCommand):
    """Measure the validation accuracy of many subnets of a trained supernet, each with recalibrated BatchNorm.

    Half of them are uniform samples, half are spread evenly over the range of MACs. They go to pairs.jsonl in the run
    folder; the same command continues where it stopped, and a larger --count adds to what is there.

    examples:
      python -m predictors.collect
      python -m predictors.collect --run runs/photos --count 500
    """

    count: int = Field(200, ge=2, description="subnets to have measured in the end")
    seed: int = Field(0, ge=0, description="of the architectures drawn")

    def execute(self) -> int:
        """Measure what is missing."""
        trained = self.open_supernet()
        path, pairs = pairs_path(self.run), read_pairs(self.run)
        write_lines(path, [pair.model_dump(mode="json") for pair in pairs])  # drops a last line that a kill left half-written
        known = {pair.arch for pair in pairs}
        with stop_on_signal() as stop, progress("measure subnets", self.count, min(len(known), self.count)) as advance:
            for row in schedule(trained, self.seed):
                arch = decode(trained.space, row)
                if len(known) >= self.count or stop.requested:
                    break
                if arch not in known:
                    macs, params = trained.cost(arch)
                    pair = Pair(arch=arch, val_accuracy=trained.accuracy(arch, "val"), macs=macs, params=params)
                    append_line(path, pair.model_dump(mode="json"))
                    known.add(arch)
                    advance(f"{pair.val_accuracy:.2%}")
        print(f"{len(known)} measured subnets in {path}")
        if stop.requested:
            print("stopped early; the same command continues")
            return 130
        middle = format_count(float(np.median([pair.macs for pair in read_pairs(self.run)])), digits=2)
        print(f"next: python -m predictors.select{run_flag(self.run)} --flops {middle}")
        return 0


def schedule(trained: Trained, seed: int) -> Iterator[Codes]:
    """The architectures to measure, in order: the extremes, then by turns a uniform one and one from the next MACs bin."""
    space, rng = trained.space, numpy_generator(seed, "collect")
    pool = sample_codes(space, POOL, rng)
    macs = trained.macs(pool)
    edges = np.linspace(macs.min(), macs.max(), BINS + 1)[1:-1]
    binned = np.digitize(macs, edges)
    bins = [pool[binned == b] for b in rng.permutation(BINS)]
    stratified = (row for rank in zip_longest(*bins) for row in rank if row is not None)
    by_turns = (row for pair in zip(pool, stratified, strict=False) for row in pair)
    return chain((encode(space, smallest(space)), encode(space, largest(space))), by_turns)


if __name__ == "__main__":
    main(Collect)
