"""Subnets that ranks measured before their turn.

Pairs stand in pairs.jsonl in the order in which they were planned, which decides what rounds learn from. A
rank may be done before the one with an earlier subnet. So each rank keeps what it measured in a file of its
own, pairs.ahead.RANK.jsonl, at once; the first rank moves the pairs to pairs.jsonl in order. Whatever an
interrupted command leaves in these files is not measured again.
"""

from collections.abc import Iterable
from pathlib import Path

from engine.config import validate
from engine.run import append_line, read_lines, write_lines
from engine.runs.writing import sync
from ofa.space.arch import Arch
from ofa.trained import EvaluationPrecision
from predictors.accuracy.pairs import Pair, pairs_path


def ahead_path(run: Path, precision: EvaluationPrecision, rank: int) -> Path:
    """The file of a rank."""
    return pairs_path(run, precision).with_suffix(f".ahead.{rank}.jsonl")


def append_pair(path: Path, pair: Pair) -> None:
    """Write one pair to the end of a file, so that it is kept however the command ends."""
    append_line(path, pair.model_dump(mode="json"))
    sync(path)


def read_ahead(run: Path, precision: EvaluationPrecision, digest: str) -> dict[Arch, Pair]:
    """What the files of all ranks hold about the weights of that digest.

    Args:
        run: the run folder.
        precision: in which the subnets were measured.
        digest: of the run's weights; pairs of other weights are left out.
    """
    found: dict[Arch, Pair] = {}
    for path in _files(run, precision):
        for number, row in enumerate(read_lines(path), start=1):
            pair = validate(Pair, row, f"{path}, line {number}")
            if pair.weights_sha256 == digest:
                found.setdefault(pair.arch, pair)
    return found


def write_ahead(run: Path, precision: EvaluationPrecision, pairs: Iterable[Pair]) -> None:
    """Replace the files of all ranks by one of the first rank; without pairs none stays."""
    rows = [pair.model_dump(mode="json") for pair in pairs]
    first = ahead_path(run, precision, 0)
    if rows:
        write_lines(first, rows)
    # Only now, so that a kill in between loses nothing.
    for path in _files(run, precision):
        if not rows or path != first:
            path.unlink()


def _files(run: Path, precision: EvaluationPrecision) -> list[Path]:
    pattern = ahead_path(run, precision, 0).name.replace(".0.", ".*.")
    return sorted(run.glob(pattern))
