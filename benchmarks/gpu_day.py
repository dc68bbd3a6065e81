"""Everything that is to be measured on the first GPU at hand, in ten minutes.

    python benchmarks/gpu_day.py

It needs one GPU and no network. NAS_DATA may name a folder with CIFAR-10 and the NAS-Bench-201 table; without
it the embedded digits serve. Results are in runs/gpu_day: a file for each part, then gpu_day.md and
gpu_day.json for benchmarks/records/. Given again, the command goes on with the parts that are not done.

(a) the device contract, parity with the CPU, equality of bits; (b) speed and memory of every step, eager, as
CUDA graphs, compiled and against plain networks; (c) calibration and evaluation of 200 subnets; (e) searches
of NAS-Bench-201; (d) a DARTS search of at most four minutes; (f) a supernet, for the rest of the time.

`--rehearse` runs all of it at toy size on a GPU that is pretended (tests/support/pretended_gpu.py).
"""

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A checkout that is not installed is enough.
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from benchmarks.on_gpu import correctness, runs, speed  # noqa: E402
from benchmarks.on_gpu.data import find_data  # noqa: E402
from benchmarks.on_gpu.parts import Context, Part, forget_failures, run_here, run_in_children  # noqa: E402
from benchmarks.on_gpu.record import write_record  # noqa: E402

MINUTES = 10.0


def parts_of(minutes: float) -> list[Part]:
    """All parts with their shares of the time; the longest last."""
    parts = [
        Part("contract", 30, correctness.contract),
        Part("parity", 60, correctness.parity),
        Part("bits", 40, correctness.bits),
        *speed.speed_parts(70),
        Part("evaluation", 15, runs.evaluation),
        Part("gaea nasbench201", 35, runs.gaea_201),
        Part("gdas nasbench201", 35, runs.gdas_201),
        *speed.compiled_parts(50),
        Part("darts search", 240, runs.darts_search),
        Part("supernet", 25, runs.supernet),
    ]
    scale = minutes / MINUTES
    return [part._replace(seconds=part.seconds * scale) for part in parts]


@contextlib.contextmanager
def real_waits() -> Iterator[dict[str, int]]:
    """The waits of the host that torch reports, by the innermost line of the project."""
    places: dict[str, int] = {}

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchronizing" in str(message):
            place = _innermost_line()
            places[place] = places.get(place, 0) + 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _innermost_line() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        inside = path.is_relative_to(ROOT) and "benchmarks" not in path.parts and ".venv" not in path.parts
        if inside:
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return "elsewhere"


def rehearse(out: Path, only: str) -> None:
    """All parts at toy size in this process, on a GPU that is pretended."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from pretended_gpu import pretended_gpu

    with pretended_gpu(ROOT) as gpu:

        @contextlib.contextmanager
        def pretended_waits() -> Iterator[dict[str, int]]:
            places: dict[str, int] = {}
            gpu.syncs.clear()
            with gpu.record():
                yield places
            places |= gpu.waits()

        found = find_data(out)._replace(cifar10=None)
        context = Context(torch.device("cuda", 0), out, found, True, pretended_waits)
        forget_failures(out)
        run_here(_chosen(parts_of(MINUTES), only), context, time.time())


def _chosen(parts: list[Part], only: str) -> list[Part]:
    return [part for part in parts if part.name.startswith(tuple(only.split(",")))]


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return said or "unknown"


def main() -> None:
    """Parse, run all parts, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all parts together")
    parser.add_argument("--only", default="", help="only parts whose names begin so, such as contract,speed")
    parser.add_argument("--rehearse", action="store_true", help="toy size, on a GPU that is pretended")
    parser.add_argument("--child-until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("error: there is no GPU here; --rehearse tries everything at toy size on a pretended one")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        rehearse(out, args.only)
    else:
        parts = _chosen(parts_of(args.minutes), args.only)
        if args.child_until is not None:
            context = Context(torch.device("cuda", 0), out, find_data(out), False, real_waits)
            run_here(parts, context, args.child_until)
            return
        forget_failures(out)
        until = time.time() + 60 * args.minutes
        words = [__file__, "--out", str(out), "--minutes", str(args.minutes), "--only", args.only]
        run_in_children(parts, out, [*words, "--child-until", str(until)])
    command = "python benchmarks/gpu_day.py" + " --rehearse" * args.rehearse
    order = [part.name for part in parts_of(args.minutes)]
    page = write_record(out, command, _commit(), args.rehearse, order)
    print(f"written: {page} and gpu_day.json beside it; they belong into benchmarks/records/")


if __name__ == "__main__":
    main()
