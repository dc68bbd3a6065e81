"""What one model file is and needs, found out in a process of its own, which a damaged file may take down.

That process imports numpy and the runtime of the file, and with onnxruntime no torch. So its memory is that
of a program on a device. `probe_file` starts it as

    python -P -m export.benchmark.probe FILE THREADS

and it prints one line of JSON: the fields of `Probe`, or `error`.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from engine.errors import shortened
from engine.outside.documents import DocumentError, parse_json
from export.formats import format_of
from export.formats.format import OperatorTime
from export.formats.onnx import plain_reason

PROBE_SECONDS = 60  # for opening a file and some 20 runs of one image
RUNS = 10  # after the first ones, a session has taken all the memory that it needs


class Probe(NamedTuple):
    """What one file is and needs.

    Args:
        shape: of the input, for one image.
        outputs: numbers for each image.
        metadata: what the file says of itself.
        memory: peak resident bytes of the process; 0: unknown.
        added: those of them that the model brought.
        operators: (operator, executed nodes, microseconds of one run), the longest first, as the runtime has
            rewritten the graph; empty if it has no profiler.
    """

    shape: list[int]
    outputs: int
    metadata: dict[str, str]
    memory: int
    added: int
    operators: list[OperatorTime]


def probe_file(path: Path, threads: int) -> Probe | str:
    """What is in a file, or half a sentence on why it is of no use."""
    # -P keeps the current folder out of the module path: a user's own export.py or engine/ there would be
    # taken for ours. The root of this package comes first for the same reason.
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH")
    places = os.pathsep.join([root, given] if given else [root])
    words = [sys.executable, "-P", "-m", "export.benchmark.probe", str(path), str(threads)]
    # The probe watches this pipe. Its other end is here, so it closes whichever way this process ends.
    watched, held = os.pipe()
    try:
        done = subprocess.run(
            words,
            stdin=watched,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"PYTHONPATH": places},
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:  # `run` has killed it
        return f"it gave no answer in {PROBE_SECONDS} seconds; its graph may hold an endless loop"
    finally:
        os.close(watched)
        os.close(held)
    # Runtimes may print before the last line, and there is none if the file took the process down.
    try:
        found = parse_json(done.stdout.splitlines()[-1])
    except (IndexError, DocumentError):
        return f"its runtime ended with status {done.returncode}"
    return shortened(str(found["error"]), 300) if "error" in found else Probe(**found)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, whatever a runtime is doing here."""

    def watch() -> None:
        os.read(0, 1)  # returns when the other end of the pipe closes: nothing is ever written to it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def look_into(path: Path, threads: int) -> Probe:
    """What `probe_file` returns, in this process.

    Raises:
        ValueError: the file is not an image classifier: one input (batch, and three fixed sides) of numbers,
            and (batch, classes) first among the outputs.
    """
    file_format = format_of(path)
    file_format.import_runtime()
    before = resident("VmRSS")
    model = file_format.load(path, threads)
    start = time.monotonic()
    for _ in range(RUNS):
        first = model.run()
        # A slow file has shown its memory after the first runs, and must not use up the probe's time.
        if time.monotonic() - start > PROBE_SECONDS / 6:
            break
    if first.ndim != 2:
        raise ValueError(f"its output has shape {first.shape}, which is not one number for each class")
    # The peak is read before the profile, which opens the file a second time.
    peak = resident("VmHWM")
    operators = file_format.profile(path, model.shape, threads)
    return Probe(model.shape, first.shape[1], model.metadata, peak, max(0, peak - before), operators)


def resident(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); 0 elsewhere than on Linux.

    getrusage's figure would not do: it starts with that of the process which started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    """Print the answer about the file that the command line names."""
    end_with_parent()
    try:
        answer = look_into(Path(sys.argv[1]), int(sys.argv[2]))._asdict()
    except Exception as error:
        # Whatever a damaged file makes its runtime raise is the answer; those errors have no common class.
        answer = {"error": plain_reason(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
