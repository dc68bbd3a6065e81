"""Measure subnets of a trained supernet: pairs of (architecture, validation accuracy) that the accuracy
predictor learns from."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, zip_longest

import numpy as np
from pydantic import Field

from engine.command.cli import main
from engine.command.interrupt import stop_on_signal
from engine.command.progress import progress
from engine.config import format_count
from engine.run import append_line, write_lines
from engine.seed import numpy_generator
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space
from ofa.trained import RunCommand, run_flag
from predictors.accuracy.acquisition import propose
from predictors.accuracy.pairs import Pair, pairs_path, read_pairs
from predictors.search.constraints import Costs

POOL = 100_000
BINS = 20
FIRST = 30


class Collect(RunCommand):
    """Measure the validation accuracy of many subnets of a trained supernet, each with recalibrated
    BatchNorm.

    Half of them are uniform samples, half are spread evenly over the range of MACs. They go to pairs.jsonl in
    the run folder; the same command continues where it stopped, and a larger --count adds to what is there.

    With --rounds 5 only the first sixth (at least 30) is chosen like that. Each of 5 rounds then fits a
    predictor to what was measured before it, and measures where the front of accuracy against MACs is
    expected to rise most; every other subnet stays random. The measured front rises much faster so; what
    predictors.select finds afterwards is hardly better (docs/log.md).

    examples:
      python -m predictors.collect
      python -m predictors.collect --run runs/photos --count 500
      python -m predictors.collect --count 120 --rounds 5
    """

    count: int = Field(200, ge=2, description="subnets to have measured in the end")
    rounds: int = Field(
        0, ge=0, description="rounds that choose subnets by what was measured before them; 0: none"
    )
    seed: int = Field(0, ge=0, description="of the architectures drawn")

    def execute(self) -> int:
        """Measure what is missing."""
        trained = self.open_supernet()
        path, pairs = pairs_path(self.run), read_pairs(self.run)
        write_lines(
            path, [pair.model_dump(mode="json") for pair in pairs]
        )  # drops a last line that a kill left half-written
        with (
            stop_on_signal() as stop,
            progress("measure subnets", self.count, min(len(pairs), self.count)) as advance,
        ):
            for row in to_measure(trained.space, trained.macs, pairs, self.count, self.rounds, self.seed):
                if stop.requested:
                    break
                arch = decode(trained.space, row)
                macs, params = trained.cost(arch)
                pair = Pair(arch=arch, val_accuracy=trained.accuracy(arch, "val"), macs=macs, params=params)
                append_line(path, pair.model_dump(mode="json"))
                pairs.append(pair)
                advance(f"{pair.val_accuracy:.2%}")
        print(f"{len(pairs)} measured subnets in {path}")
        if stop.requested:
            print("stopped early; the same command continues")
            return 130
        middle = format_count(float(np.median([pair.macs for pair in pairs])), digits=2)
        print(f"next: python -m predictors.select{run_flag(self.run)} --flops {middle}")
        return 0


def to_measure(
    space: Space, macs: Costs, pairs: list[Pair], count: int, rounds: int, seed: int
) -> Iterator[Codes]:
    """What to measure until there are `count` pairs; the caller appends each to `pairs` before it asks for
    the next.

    A round learns from the pairs that were there when it began, by their number: interrupted anywhere, it
    proposes the same again.
    """
    ends = round_ends(count, rounds)
    yield from _unknown(space, schedule(space, macs, seed), pairs, ends[0])
    for i, (start, end) in enumerate(pairwise(ends)):
        if len(pairs) < end:
            codes = np.stack([encode(space, pair.arch) for pair in pairs[:start]])
            y = np.array([pair.val_accuracy for pair in pairs[:start]])
            proposed = propose(
                space, macs, codes, y, (end - start) // 2, seed, numpy_generator(seed, "collect", "round", i)
            )
            yield from _unknown(space, chain(proposed, schedule(space, macs, seed)), pairs, end)


def round_ends(count: int, rounds: int) -> list[int]:
    """How many subnets are measured after the first, random part, and after each round."""
    first = max(count // (rounds + 1), min(count, FIRST))
    return [first + (count - first) * i // max(rounds, 1) for i in range(rounds + 1)] if rounds else [count]


def _unknown(space: Space, rows: Iterable[Codes], pairs: list[Pair], until: int) -> Iterator[Codes]:
    """Those of `rows` that are not in `pairs`, until it has that many; the caller appends to it."""
    known = {pair.arch for pair in pairs}
    for row in rows:
        if len(pairs) >= until:
            return
        arch = decode(space, row)
        if arch not in known:
            known.add(arch)
            yield row


def schedule(space: Space, macs: Costs, seed: int) -> Iterator[Codes]:
    """The architectures to measure, in order: the extremes, then by turns a uniform one and one from the next
    MACs bin."""
    rng = numpy_generator(seed, "collect")
    pool = sample_codes(space, POOL, rng)
    size = macs(pool)
    edges = np.linspace(size.min(), size.max(), BINS + 1)[1:-1]
    binned = np.digitize(size, edges)
    bins = [pool[binned == b] for b in rng.permutation(BINS)]
    stratified = (row for rank in zip_longest(*bins) for row in rank if row is not None)
    by_turns = (row for pair in zip(pool, stratified, strict=False) for row in pair)
    return chain((encode(space, smallest(space)), encode(space, largest(space))), by_turns)


if __name__ == "__main__":
    main(Collect)
