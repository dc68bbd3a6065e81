"""Time ONNX files on this machine.

This file stands alone: it needs Python 3.8, numpy and onnxruntime and nothing else, because kits for devices
hold a copy of it as bench.py:

    python bench.py            in the folder of manifest.json; writes latency.csv there, or continues that
    file

Every round visits all items in a new random order, each in a new session. Slow drifts of the machine, and the
place where a session's memory happens to lie, then become differences between rounds, which a reader of the
CSV sees. If each item had one long visit, they would look like differences between items.

These sessions sum 8-bit products as the machine does it fastest, since that is what a program waits for. To
compare a file's numbers with torch, `export.formats` opens exact sessions instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

# Percentiles of the runs of one visit. The median is what predictors.select limits, and the 90th says how far
# slow runs are from it. The 20th is nearer to an undisturbed run: whatever disturbs a run makes it slower.
PERCENTILES = (20, 50, 90)
# Milliseconds: wall_p20 and so on.
TIMES = [clock + "_p" + str(q) for clock in ("wall", "cpu") for q in PERCENTILES]
COLUMNS = ["name", "round", "runs", *TIMES, "threads", "runtime", "machine"]
# A session allocates its memory and packs its weights in the first runs, so these are not counted.
WARM_UP = 3
# Runs of one visit to an item: a slow one needs some for a percentile, a fast one needs no more than this.
AT_LEAST, AT_MOST = 8, 200
# If even and odd rounds differ by more than this share, the machine was disturbed.
DIFFERENCE_AT_MOST = 0.1


def open_session(
    path: Path, shape: list[int], threads: int, profile: Path | None = None
) -> ort.InferenceSession:
    """A session of onnxruntime on the CPU for one input shape.

    Args:
        path: the model file.
        shape: of the input; the free dimensions `batch` and `side` are fixed to its first and last number
            before onnxruntime optimises the graph.
        threads: of onnxruntime.
        profile: start of the name of the file into which onnxruntime writes the time of each node.
    """
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    # Random inputs can lead to denormal numbers, with which some CPUs compute many times slower.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_free_dimension_override_by_name("batch", shape[0])
    options.add_free_dimension_override_by_name("side", shape[-1])
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def random_input(session: ort.InferenceSession, shape: list[int]) -> np.ndarray:
    """Random numbers (shape) of the type of the session's input; for bytes, random pixels."""
    rng, kind = np.random.default_rng(0), session.get_inputs()[0].type
    if kind == "tensor(uint8)":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    numbers = rng.standard_normal(shape, dtype=np.float32)
    return numbers.astype(np.float16) if kind == "tensor(float16)" else numbers


def bound_run(path: Path, shape: list[int], threads: int) -> Callable[[], object]:
    """A function that runs the file once on a random input of `shape`, without copies of input and output."""
    session = open_session(path, shape, threads)
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, random_input(session, shape))
    binding.bind_output(session.get_outputs()[0].name, "cpu")

    def run() -> object:
        return session.run_with_iobinding(binding)

    return run


def plain_run(path: Path, shape: list[int], threads: int) -> Callable[[], object]:
    """A function that runs the file once as a program does: an array goes in and a new one comes out.

    The call itself takes some microseconds more than that of `bound_run`, which a limit of latency has to
    hold for as well.
    """
    session = open_session(path, shape, threads)
    feeds = {session.get_inputs()[0].name: random_input(session, shape)}

    def run() -> object:
        return session.run(None, feeds)

    return run


def time_runs(
    run: Callable[[], object],
    threads: int,
    seconds: float,
    at_least: int = AT_LEAST,
    at_most: float = AT_MOST,
) -> tuple[list[float], list[float]]:
    """Call `run` again and again and time each call.

    Args:
        run: the function to time.
        threads: how many threads `run` computes with.
        seconds: time after which no further call starts.
        at_least: calls that are timed even if they take longer.
        at_most: calls after which the timing ends earlier; `math.inf` for no limit.

    Returns:
        (wall, cpu) milliseconds of each call, those of the warm-up left out. With one thread, cpu is the time
        of this thread, which computes; with more, it is that of the process.
    """
    clock = time.thread_time if threads == 1 else time.process_time
    wall: list[float] = []
    cpu: list[float] = []
    start = time.perf_counter()
    while len(wall) < at_most + WARM_UP:
        if len(wall) >= at_least + WARM_UP and time.perf_counter() - start >= seconds:
            break
        # The wall clock is read last before the run and first after it: reading the other clock is not
        # measured.
        cpu_before, before = clock(), time.perf_counter()
        run()
        wall.append(1e3 * (time.perf_counter() - before))
        cpu.append(1e3 * (clock() - cpu_before))
    return wall[WARM_UP:], cpu[WARM_UP:]


def runtime_name() -> str:
    """What times the files, such as `onnxruntime 1.27.0`."""
    return "onnxruntime " + ort.__version__


def machine_name() -> str:
    """What computes on this machine, such as `x86_64 AMD EPYC 7B13`: timings of equal names compare."""
    name = platform.processor()
    # On Linux `platform.processor` is empty or repeats the architecture. Boards with ARM have the first file.
    for path, start in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        found = [line.partition(":")[2] or line for line in lines if line.startswith(start)]
        if found:
            name = found[0].strip(" \t\0")
            break
    return " ".join((platform.machine() + " " + name).split())


def time_item(path: Path, shape: list[int], threads: int, seconds: float) -> tuple[list[float], list[float]]:
    """(wall, cpu) milliseconds of each run of a file in a new session; arguments as in `time_runs`."""
    return time_runs(plain_run(path, shape, threads), threads, seconds)


def halves_of(rounds: Mapping[int, float]) -> tuple[float, float] | None:
    """The medians of even and of odd rounds; none if all rounds are of one kind.

    Args:
        rounds: milliseconds by the number of the round.
    """
    even = [ms for turn, ms in rounds.items() if turn % 2 == 0]
    odd = [ms for turn, ms in rounds.items() if turn % 2 == 1]
    if not even or not odd:
        return None
    return float(np.median(even)), float(np.median(odd))


def finished(path: Path) -> set[tuple[str, int]]:
    """What an earlier start measured, as (name, round). A half-written last line of the file is removed.

    Args:
        path: the CSV.
    """
    if not path.exists():
        return set()
    # A killed process leaves half a line, and the next row would be appended to it.
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open(newline="", encoding="utf-8") as file:
        found = set()
        for row in csv.DictReader(file):
            name, turn = row.get("name"), row.get("round") or ""
            # A line that is damaged counts for nothing: its item is timed again.
            if name and turn.isascii() and turn.isdigit() and len(turn) < 10:
                found.add((name, int(turn)))
        return found


def bench(
    folder: Path, out: Path, rounds: int, threads: int, seconds: float, advance: Callable[[], None]
) -> None:
    """Append what is missing of `rounds` rounds over the items of folder/manifest.json to the CSV `out`.

    Args:
        folder: holds manifest.json and the model files that it names.
        out: the CSV; one that exists is continued.
        rounds, threads: how often each item is visited, and threads of onnxruntime.
        seconds: time for each visit.
        advance: called after each visit.
    """
    items = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["items"]
    done, machine = finished(out), machine_name()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for turn in range(rounds):
            # Seeded by the round, so that a continued run goes through its round in the same order.
            for item in random.Random(turn).sample(items, len(items)):
                if (item["name"], turn) in done:
                    continue
                # A kit comes from another machine, and must not make anybody open files elsewhere.
                if Path(item["file"]).name != item["file"]:
                    raise ValueError(
                        "manifest.json names a file outside of its folder: " + item["file"][:200]
                    )
                wall, cpu = time_item(folder / item["file"], item["shape"], threads, seconds)
                numbers = [f"{ms:.6g}" for times in (wall, cpu) for ms in np.percentile(times, PERCENTILES)]
                writer.writerow([item["name"], turn, len(wall), *numbers, threads, runtime_name(), machine])
                file.flush()  # a process that is killed loses one item at most
                advance()


def main() -> None:
    """Time the files beside this script, as `python bench.py`."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Time the ONNX files of this folder and write a CSV.")
    parser.add_argument(
        "--out", type=Path, default=here / "latency.csv", help="the CSV; one that exists is continued"
    )
    parser.add_argument("--rounds", type=int, default=6, help="times that each file is measured")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime")
    parser.add_argument("--seconds", type=float, default=0.03, help="time for each file in each round")
    flags = parser.parse_args()
    total = flags.rounds * len(json.loads((here / "manifest.json").read_text(encoding="utf-8"))["items"])
    count = len(finished(flags.out))

    def advance() -> None:
        nonlocal count
        count += 1
        if count % 100 == 0 or count == total:
            print(f"{count} of {total}", flush=True)

    bench(here, flags.out, flags.rounds, flags.threads, flags.seconds, advance)
    print("written:", flags.out)


if __name__ == "__main__":
    main()
