"""What one model file is and needs, found out in a process of its own, which a damaged file may take down.

That process holds numpy and onnxruntime but no torch, so its memory is that of a program on a device. It is
started as

    python -m export.benchmark.probe FILE THREADS

and prints one line of JSON: the fields of `Probe`, or `error`.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from engine.onnx_timing import open_session, random_input

RUNS = 10
DTYPES = ("tensor(float)", "tensor(float16)", "tensor(uint8)")


class Probe(NamedTuple):
    """shape: of the input, for one image. memory: peak resident bytes; added: those of them that the model
    brought (0: unknown).

    operators: (operator, executed nodes, microseconds of one run), the longest first, as onnxruntime has
        rewritten the graph.
    """

    shape: list[int]
    outputs: int
    metadata: dict[str, str]
    memory: int
    added: int
    operators: list[tuple[str, int, float]]


def probe(path: Path, threads: int) -> Probe | str:
    """What is in the file, or half a sentence on why it is of no use."""
    root = str(Path(__file__).parents[2])
    places = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "export.benchmark.probe", str(path), str(threads)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": places}
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return f"onnxruntime ended with status {done.returncode}"
    return str(found["error"]) if "error" in found else Probe(**found)


def look(path: Path, threads: int) -> Probe:
    """What `probe` returns, in this process.

    Raises:
        ValueError: not an image classifier: one input (batch, and three fixed sides) of numbers, and (batch,
            classes) first among outputs.
    """
    before = resident("VmRSS")
    session = open_session(path, [1, 1], threads)
    inputs, shape = session.get_inputs(), [1, *session.get_inputs()[0].shape[1:]]
    if (
        len(inputs) != 1
        or len(shape) != 4
        or not all(isinstance(side, int) for side in shape)
        or inputs[0].type not in DTYPES
    ):
        raise ValueError("its input is not one image of a fixed size")
    x = {inputs[0].name: random_input(session, shape)}
    for _ in range(RUNS):
        first = session.run(None, x)[0]
    if first.ndim != 2:
        raise ValueError(f"its output has shape {first.shape}, which is not one number for each class")
    peak = resident("VmHWM")
    facts = session.get_modelmeta().custom_metadata_map
    return Probe(shape, first.shape[1], facts, peak, max(0, peak - before), profile(path, shape, threads))


def resident(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); elsewhere than on Linux 0.

    getrusage's figure would not do: it starts with that of the process which started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)
    return 1024 * int(found[1]) if found else 0


def profile(path: Path, shape: list[int], threads: int) -> list[tuple[str, int, float]]:
    """Operators, executed nodes and microseconds of one run, the median of each node by onnxruntime's
    profiler.

    It makes all of them a little slower, and knows microseconds only: shares are for reading, not sums.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, shape, threads, Path(folder) / "profile")
        x = {session.get_inputs()[0].name: random_input(session, shape)}
        for _ in range(RUNS):
            session.run(None, x)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["args"]["node_index"]), []).append(event["dur"])
    spent: dict[str, list[float]] = {}
    for (operator, _), node in times.items():
        spent.setdefault(operator, []).append(statistics.median(node))
    return sorted(
        ((name, len(nodes), sum(nodes)) for name, nodes in spent.items()), key=lambda item: -item[2]
    )


def main() -> None:
    """The command. Whatever a damaged file makes onnxruntime raise (its errors have no common class) is the
    answer."""
    try:
        answer = look(Path(sys.argv[1]), int(sys.argv[2]))._asdict()
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        answer = {
            "error": re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", first)
            .strip()
            .rstrip(".")
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
