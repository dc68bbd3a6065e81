"""Measure subnets of a trained supernet: pairs of architecture and accuracy, for the accuracy predictor."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, zip_longest
from typing import ClassVar

import numpy as np
from pydantic import Field

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.interrupt import stop_on_signal
from engine.command.progress import Advance, progress
from engine.command.start import say
from engine.compute.distributed import Ranks
from engine.compute.sharing import MEASURED_STAYS, SharedWork
from engine.config import counted, format_count
from engine.run import write_lines
from engine.seed import numpy_generator
from engine.statistics import format_accuracy
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.space.space import Space
from ofa.trained import EvaluationPrecision, RunCommand, TrainedSupernet, precision_flag, run_flag
from predictors.accuracy.acquisition import propose
from predictors.accuracy.ahead import ahead_path, append_pair, read_ahead, write_ahead
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

    Processes that torchrun starts, one for each GPU, share the subnets: each measures the next one that is
    free. The pairs are those of one process, in the same order.

    examples:
      python -m predictors.collect
      python -m predictors.collect --run runs/photos --count 500
      python -m predictors.collect --count 120 --rounds 5
      torchrun --nproc-per-node 4 -m -- predictors.collect --run runs/photos
    """

    many_processes: ClassVar[bool] = True

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
        """Measure the subnets that are missing, together with the other processes if there are several."""
        with self.processes(MEASURED_STAYS) as (ranks, device):
            return self._collect(self.open_supernet(ranks, device), ranks)

    def _collect(self, trained: TrainedSupernet, ranks: Ranks) -> int:
        digest = weights_digest(self.run)

        def measure(arch_json: str) -> str:
            pair = self._measure(trained, Arch.model_validate_json(arch_json), digest)
            # At once: what is measured is kept, however this ends.
            if ranks.size > 1:
                append_pair(ahead_path(self.run, self.precision, ranks.rank), pair)
            return pair.model_dump_json()

        with stop_on_signal() as stop, SharedWork(ranks, measure, stop) as work:
            if ranks.first:
                return self._plan(trained, digest, work)
            work.help()
        return 0

    def _measure(self, trained: TrainedSupernet, arch: Arch, digest: str) -> Pair:
        macs, params = trained.cost(arch)
        accuracy = trained.accuracy(arch, "val", self.precision)
        return Pair(arch=arch, val_accuracy=accuracy, macs=macs, params=params, weights_sha256=digest)

    def _plan(self, trained: TrainedSupernet, digest: str, work: SharedWork) -> int:
        """Decide what is measured, as the first rank, and write it."""
        path = pairs_path(self.run, self.precision)
        if self.overwrite:
            path.unlink(missing_ok=True)
            write_ahead(self.run, self.precision, [])
        pairs, ahead = read_pairs(self.run, self.precision), read_ahead(self.run, self.precision, digest)
        check_pairs(pairs, trained, self.precision)
        # Written again, so that a last line that a kill left half-written is gone before others follow it.
        write_lines(path, [pair.model_dump(mode="json") for pair in pairs])
        write_ahead(self.run, self.precision, _missing(ahead, pairs))
        done, images = min(len(pairs), self.count), trained.data.count("val")
        with progress("measure subnets", self.count, done) as advance:
            for rows in to_measure(trained.space, trained.macs, pairs, self.count, self.rounds, self.seed):
                archs = [decode(trained.space, row) for row in rows]
                self._measure_all(archs, pairs, ahead, work, advance, images)
                if work.stopped:
                    break
        stopped = work.stopped
        write_ahead(self.run, self.precision, _missing(ahead, pairs))
        print(f"{counted(len(pairs), 'measured subnet')} in {path}")
        if stopped:
            print("stopped early; the same command continues")
            return 130  # the exit status that shells give to an interrupted program
        # The next command takes an example of a budget: the middle of what was measured.
        middle = format_count(float(np.median([pair.macs for pair in pairs])), digits=2)
        flags = f"{run_flag(self.run)} --flops {middle}{precision_flag(self.precision)}"
        say(f"next: python -m predictors.select{flags}")
        return 0

    def _measure_all(
        self,
        archs: list[Arch],
        pairs: list[Pair],
        ahead: dict[Arch, Pair],
        work: SharedWork,
        advance: Advance,
        images: int,
    ) -> None:
        """Measure `archs`; write them and append them to `pairs` in their order, as far as they are there."""
        path = pairs_path(self.run, self.precision)
        waiting = [arch for arch in archs if arch not in ahead]
        written = 0

        def write() -> None:
            nonlocal written
            while written < len(archs) and archs[written] in ahead:
                pair = ahead[archs[written]]
                append_pair(path, pair)
                pairs.append(pair)
                written += 1

        for _ in range(len(archs) - len(waiting)):
            advance("measured before")
        write()
        for _, measured in work.results([arch.model_dump_json() for arch in waiting]):
            pair = Pair.model_validate_json(measured)
            ahead[pair.arch] = pair
            write()
            advance(format_accuracy(pair.val_accuracy, images))


def _missing(ahead: dict[Arch, Pair], pairs: list[Pair]) -> list[Pair]:
    """What was measured and is not in `pairs` yet."""
    known = {pair.arch for pair in pairs}
    return [pair for arch, pair in ahead.items() if arch not in known]


def to_measure(
    space: Space, macs: ArchCostFn, pairs: list[Pair], count: int, rounds: int, seed: int
) -> Iterator[list[Codes]]:
    """What to measure until there are `count` pairs, as lists of encoded architectures.

    The caller appends all of a list to `pairs`, in this order, before it asks for the next list. A round
    learns from the first so many pairs, as many as there were when it began. So it proposes the same again,
    wherever it was interrupted.

    Args:
        space: of the supernet.
        macs: of encoded architectures.
        pairs: what is measured; the caller adds to it.
        count: how many pairs there are in the end.
        rounds: how many rounds propose by what was measured before them.
        seed: of the architectures that are drawn, and of the predictor.
    """
    ends = round_ends(count, rounds)
    yield _unknown(space, schedule(space, macs, seed), pairs, ends[0])
    for i, (start, end) in enumerate(pairwise(ends)):
        if len(pairs) >= end:
            continue
        codes = np.stack([encode(space, pair.arch) for pair in pairs[:start]])
        y = np.array([pair.val_accuracy for pair in pairs[:start]])
        rng = numpy_generator(seed, "collect", "round", i)
        # The other half of a round stays random. The schedule starts anew: what it gave before is known.
        proposed = propose(space, macs, codes, y, (end - start) // 2, seed, rng)
        yield _unknown(space, chain(proposed, schedule(space, macs, seed)), pairs, end)


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


def _unknown(space: Space, rows: Iterable[Codes], pairs: list[Pair], until: int) -> list[Codes]:
    """The first of `rows` that are not in `pairs`: as many as bring `pairs` to `until` entries."""
    known = {pair.arch for pair in pairs}
    found: list[Codes] = []
    for row in rows:
        if len(pairs) + len(found) >= until:
            break
        arch = decode(space, row)
        if arch not in known:
            known.add(arch)
            found.append(row)
    return found


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
