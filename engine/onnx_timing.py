"""Time ONNX files on this machine. Stand-alone: needs Python 3.8, numpy and onnxruntime, nothing else; made
to be copied to a device.

    python bench.py            in the folder with manifest.json; writes latency.csv there, and continues one
    that was interrupted

Every round visits all items in a new random order, each in a new session: slow drifts of the machine, and
where a session's memory happens to lie, become differences between rounds, which are seen, instead of
differences between items, which would be believed.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

COLUMNS = [
    "name",
    "round",
    "runs",
    "wall_p20",
    "wall_p50",
    "cpu_p20",
    "cpu_p50",
    "threads",
    "runtime",
    "machine",
]
WARM_UP, AT_LEAST, AT_MOST = 3, 8, 200


def open_session(
    path: Path, shape: list[int], threads: int, profile: Path | None = None
) -> ort.InferenceSession:
    """A session for this input shape alone: free dimensions `batch` and `side` are pinned before the graph is
    optimised.

    profile: how the name of the file starts into which onnxruntime writes what it spends on each node.
    """
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_free_dimension_override_by_name("batch", shape[0])
    options.add_free_dimension_override_by_name("side", shape[-1])
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def random_input(session: ort.InferenceSession, shape: list[int]) -> np.ndarray:
    """Random numbers of the type that the session's input has: pixels where that is bytes."""
    rng, kind = np.random.default_rng(0), session.get_inputs()[0].type
    if kind == "tensor(uint8)":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32).astype(
        np.float16 if kind == "tensor(float16)" else np.float32
    )


def time_item(path: Path, shape: list[int], threads: int, seconds: float) -> tuple[list[float], list[float]]:
    """(wall, cpu) milliseconds of each run. With one thread, cpu is that of this thread, which computes; with
    more, of the process."""
    session = open_session(path, shape, threads)
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, random_input(session, shape))
    binding.bind_output(session.get_outputs()[0].name, "cpu")
    clock = time.thread_time if threads == 1 else time.process_time
    wall: list[float] = []
    cpu: list[float] = []
    start = time.perf_counter()
    while len(wall) < AT_MOST + WARM_UP and (
        len(wall) < AT_LEAST + WARM_UP or time.perf_counter() - start < seconds
    ):
        cpu_before, before = clock(), time.perf_counter()
        session.run_with_iobinding(binding)
        wall.append(1e3 * (time.perf_counter() - before))
        cpu.append(1e3 * (clock() - cpu_before))
    return wall[WARM_UP:], cpu[WARM_UP:]


def finished(path: Path) -> set[tuple[str, int]]:
    """What an earlier start measured, as (name, round); a line that a kill left unfinished is cut off."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["name"], int(row["round"])) for row in csv.DictReader(file)}


def bench(
    folder: Path, out: Path, rounds: int, threads: int, seconds: float, advance: Callable[[], None]
) -> None:
    """Append what is missing of `rounds` rounds over the items of folder/manifest.json to the CSV `out`;
    advance() after each."""
    items = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["items"]
    done = finished(out)
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for turn in range(rounds):
            for item in random.Random(turn).sample(items, len(items)):
                if (item["name"], turn) in done:
                    continue
                wall, cpu = time_item(folder / item["file"], item["shape"], threads, seconds)
                numbers = [f"{np.percentile(times, q):.6g}" for times in (wall, cpu) for q in (20, 50)]
                runtime = "onnxruntime " + ort.__version__
                writer.writerow(
                    [item["name"], turn, len(wall), *numbers, threads, runtime, platform.machine()]
                )
                file.flush()
                advance()


def main() -> None:
    """The command."""
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
