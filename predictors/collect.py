"""Measure subnets of a trained supernet: pairs of architecture and accuracy, for the accuracy predictor."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, zip_longest
from typing import ClassVar

import numpy as np
from pydantic import Field

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.interrupt import stop_on_signal
from engine.command.progress import progress
from engine.command.start import say
from engine.config import format_count
from engine.run import append_line, write_lines
from engine.runs.writing import sync
from engine.seed import numpy_generator
from engine.statistics import format_accuracy
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space
from ofa.trained import EvaluationPrecision, RunCommand, precision_flag, run_flag
from predictors.accuracy.acquisition import propose
from predictors.accuracy.pairs import Pair, check_pairs, pairs_path, read_pairs
from predictors.search.constraints import ArchCostFn

POOL = 100_000  # random architectures from which those to measure are taken
BINS = 20  # bins of MACs, of equal width
FIRST = 30  # pairs before the first round: from so many on a Gaussian process is the favourite predictor


class Collect(RunCommand):
    """Measure the validation accuracy of many subnets of a trained supernet.

    BatchNorm is recalibrated for each subnet. Half of them are uniform samples, half are spread evenly over
    the range of MACs. They go to pairs.jsonl in the run folder (those of --precision int8 to
    pairs.int8.jsonl); the same command continues where it stopped, and a larger --count adds to what is
    there.

    With --rounds 5 only the first sixth (at least 30) is chosen in this way. Each of 5 rounds then fits a
    predictor to what was measured before it, and measures where the front of accuracy against MACs is
    expected to rise most; every other subnet stays random. The measured front rises much faster this way;
    what predictors.select finds afterwards is hardly better (docs/log.md).

    examples:
      python -m predictors.collect
      python -m predictors.collect --run runs/photos --count 500
      python -m predictors.collect --count 120 --rounds 5
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--run",
        "--count",
        "--rounds",
        "--seed",
        "--data",
        "--device",
        "--threads",
    )

    count: int = Field(200, ge=2, description="subnets to have measured in the end")
    rounds: int = Field(
        0, ge=0, description="rounds that choose subnets by what was measured before them; 0: none"
    )
    precision: EvaluationPrecision = Field(
        "float32",
        description="int8: subnets are measured as 8-bit files compute, for select --precision int8",
    )
    seed: int = Field(0, ge=0, description="seed of the architectures that are drawn")
    overwrite: bool = Field(False, description="measure anew, without the pairs that are there")

    def execute(self) -> int:
        """Measure the subnets that are missing."""
        with self.write_lock():
            return self._collect()

    def _collect(self) -> int:
        trained = self.open_supernet()
        path = pairs_path(self.run, self.precision)
        if self.overwrite:
            path.unlink(missing_ok=True)
        pairs, digest = read_pairs(self.run, self.precision), weights_digest(self.run)
        check_pairs(pairs, trained, self.precision)
        # Written again, so that a last line that a kill left half-written is gone before others follow it.
        write_lines(path, [pair.model_dump(mode="json") for pair in pairs])
        rows = to_measure(trained.space, trained.macs, pairs, self.count, self.rounds, self.seed)
        done, images = min(len(pairs), self.count), trained.data.count("val")
        with stop_on_signal() as stop, progress("measure subnets", self.count, done) as advance:
            for row in rows:
                if stop.requested:
                    break
                arch = decode(trained.space, row)
                macs, params = trained.cost(arch)
                pair = Pair(
                    arch=arch,
                    val_accuracy=trained.accuracy(arch, "val", self.precision),
                    macs=macs,
                    params=params,
                    weights_sha256=digest,
                )
                # At once: what is measured is kept, however this ends.
                append_line(path, pair.model_dump(mode="json"))
                sync(path)
                pairs.append(pair)
                advance(format_accuracy(pair.val_accuracy, images))
        print(f"{len(pairs)} measured subnets in {path}")
        if stop.requested:
            print("stopped early; the same command continues")
            return 130  # the exit status that shells give to an interrupted program
        # The next command takes an example of a budget: the middle of what was measured.
        middle = format_count(float(np.median([pair.macs for pair in pairs])), digits=2)
        flags = f"{run_flag(self.run)} --flops {middle}{precision_flag(self.precision)}"
        say(f"next: python -m predictors.select{flags}")
        return 0


def to_measure(
    space: Space, macs: ArchCostFn, pairs: list[Pair], count: int, rounds: int, seed: int
) -> Iterator[Codes]:
    """What to measure until there are `count` pairs, as encoded architectures.

    The caller appends each to `pairs` before it asks for the next one. A round learns from the first so many
    pairs, as many as there were when it began. So it proposes the same again, wherever it was interrupted.

    Args:
        space: of the supernet.
        macs: of encoded architectures.
        pairs: what is measured; the caller adds to it.
        count: how many pairs there are in the end.
        rounds: how many rounds propose by what was measured before them.
        seed: of the architectures that are drawn, and of the predictor.
    """
    ends = round_ends(count, rounds)
    yield from _unknown(space, schedule(space, macs, seed), pairs, ends[0])
    for i, (start, end) in enumerate(pairwise(ends)):
        if len(pairs) >= end:
            continue
        codes = np.stack([encode(space, pair.arch) for pair in pairs[:start]])
        y = np.array([pair.val_accuracy for pair in pairs[:start]])
        rng = numpy_generator(seed, "collect", "round", i)
        # The other half of a round stays random. The schedule starts anew: what it gave before is known.
        proposed = propose(space, macs, codes, y, (end - start) // 2, seed, rng)
        yield from _unknown(space, chain(proposed, schedule(space, macs, seed)), pairs, end)


def round_ends(count: int, rounds: int) -> list[int]:
    """How many subnets are measured after the first, random part, and after each round.

    Args:
        count: how many subnets are measured in the end.
        rounds: how many rounds follow the random part; 0 for none.

    Returns:
        `rounds` + 1 numbers, the last of which is `count`.
    """
    if not rounds:
        return [count]
    first = max(count // (rounds + 1), min(count, FIRST))
    return [first + (count - first) * i // rounds for i in range(rounds + 1)]


def _unknown(space: Space, rows: Iterable[Codes], pairs: list[Pair], until: int) -> Iterator[Codes]:
    """Those of `rows` that are not in `pairs`, until `pairs` has `until` entries; the caller adds to it."""
    known = {pair.arch for pair in pairs}
    for row in rows:
        if len(pairs) >= until:
            return
        arch = decode(space, row)
        if arch not in known:
            known.add(arch)
            yield row


def schedule(space: Space, macs: ArchCostFn, seed: int) -> Iterator[Codes]:
    """The architectures to measure, in order: first the smallest and the largest one.

    Then follow by turns a uniform sample and one from the next of 20 bins of MACs: uniform samples are dense
    where architectures are many, in the middle of the range, and the bins spread the others evenly over it.

    Args:
        space: of the supernet.
        macs: multiply-accumulates of encoded architectures.
        seed: of the samples. The same seed gives the same order.
    """
    rng = numpy_generator(seed, "collect")
    pool = sample_codes(space, POOL, rng)
    macs_N = macs(pool)
    edges = np.linspace(macs_N.min(), macs_N.max(), BINS + 1)[1:-1]
    bin_of = np.digitize(macs_N, edges)
    # Bins in random order: then the first few measurements are spread over the range, too.
    bins = [pool[bin_of == b] for b in rng.permutation(BINS)]
    # Both ends first: the front that a round raises begins at the smallest known subnet.
    yield encode(space, smallest(space))
    yield encode(space, largest(space))
    for uniform, spread in zip(pool, _by_turns(bins), strict=False):
        yield uniform
        yield spread


def _by_turns(bins: list[Codes]) -> Iterator[Codes]:
    """The first row of each bin, then the second of each that has one, and so on."""
    for rows in zip_longest(*bins):
        for row in rows:
            if row is not None:
                yield row


if __name__ == "__main__":
    main(Collect)
