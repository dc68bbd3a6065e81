"""Parts of a measurement, each with a result file of its own, run by a process that may die.

An error of CUDA leaves a process useless, and a hang leaves it silent. So parts run in a child process; where
it ends or takes too long, the part under way has failed, and another child goes on with the rest. What is
measured is in a file at once, and is not measured again by the same command.
"""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.on_gpu.data import Found

STARTUP = 60.0  # seconds in which a child must have begun its next part
GRACE = 120.0  # seconds that a part may take beyond its share before its process is ended; to compile


@dataclass
class Context:
    """What every part gets.

    Args:
        device: where to measure.
        out: the folder of results.
        found: images and tables.
        toy: everything is tiny, since this is a rehearsal.
        waits: a context manager; while it is open, the waits of the host are counted.
        deadline: when the part should end, as `time.monotonic` counts.
    """

    device: torch.device
    out: Path
    found: Found
    toy: bool
    waits: Callable[[], AbstractContextManager[dict[str, int]]]
    deadline: float = field(default=float("inf"))

    def left(self) -> float:
        """Seconds that the part has left."""
        return max(0.0, self.deadline - time.monotonic())


class Part(NamedTuple):
    """A part: its name, how long it may take, in seconds, and what it does, which returns its findings."""

    name: str
    seconds: float
    run: Callable[[Context], dict[str, Any]]


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """What the files of parts hold, by the name of the part."""
    found = {}
    for path in sorted((out / "parts").glob("*.json")):
        result = json.loads(path.read_text())
        found[result["part"]] = result
    return found


def write_result(out: Path, part: Part, status: str, seconds: float, **more: Any) -> None:
    """The file of a part. status: running, done or failed."""
    path = out / "parts" / f"{part.name.replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"part": part.name, "status": status, "seconds": round(seconds, 1), **more}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(path)


def remaining(parts: Sequence[Part], out: Path) -> list[Part]:
    """Parts without a result."""
    results = read_results(out)
    return [part for part in parts if results.get(part.name, {}).get("status") in (None, "running")]


def forget_failures(out: Path) -> None:
    """Remove the files of parts that are not done, so that they are tried again."""
    for path in (out / "parts").glob("*.json"):
        if json.loads(path.read_text())["status"] != "done":
            path.unlink()


def run_here(parts: Sequence[Part], context: Context, end: float) -> None:
    """Run the parts that have no result, in this process.

    Args:
        parts: all of them.
        context: what they get.
        end: when all should be over, as `time.time` counts, since the parent counts too.
    """
    todo = remaining(parts, context.out)
    for number, part in enumerate(todo):
        began = time.monotonic()
        # Where earlier parts took too long, all later ones get less; the last one has whatever is left.
        left = max(0.0, end - time.time())
        share = left * part.seconds / sum(later.seconds for later in todo[number:])
        if number + 1 < len(todo):
            share = min(share, part.seconds)
        write_result(context.out, part, "running", share)
        print(f"{part.name} ...", flush=True)
        # A rehearsal is not measured, and slow machines rehearse too.
        context.deadline = float("inf") if context.toy else began + share
        try:
            result = part.run(context)
        except Exception as error:
            said = "".join(traceback.format_exception(error)[-3:])
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            write_result(context.out, part, "failed", time.monotonic() - began, error=first_line, trace=said)
            print(f"{part.name} failed: {first_line}", flush=True)
            # Every later call would fail, too; another process does not.
            if "CUDA error" in str(error):
                sys.exit(3)
        else:
            seconds = time.monotonic() - began
            write_result(context.out, part, "done", seconds, result=result)
            print(f"{part.name}: {seconds:.0f} s", flush=True)


def run_in_children(parts: Sequence[Part], out: Path, words: Sequence[str]) -> None:
    """Run the parts that have no result, in as many child processes as are needed.

    Args:
        parts: all of them.
        out: the folder of results.
        words: the command line of a child.
    """
    while remaining(parts, out):
        before = len(remaining(parts, out))
        child = subprocess.Popen([sys.executable, *words])
        for reason in _watch(child, parts, out):
            child.kill()
            child.wait()
            _fail_running(parts, out, reason)
        if child.returncode:
            _fail_running(parts, out, f"its process ended with {child.returncode}")
        if len(remaining(parts, out)) == before:
            _fail_next(parts, out, "its process ended before it began")


def _watch(child: subprocess.Popen[bytes], parts: Sequence[Part], out: Path) -> Iterator[str]:
    """Wait for the child; yield a reason to end it."""
    current, since = "", time.monotonic()
    while child.poll() is None:
        time.sleep(0.5)
        running = {name: r for name, r in read_results(out).items() if r["status"] == "running"}
        name = next(iter(running), "")
        if name != current:
            current, since = name, time.monotonic()
        limit = running[name]["seconds"] + GRACE if name else STARTUP + GRACE
        if time.monotonic() - since > limit:
            yield f"no result after {time.monotonic() - since:.0f} s"
            return


def _fail_running(parts: Sequence[Part], out: Path, reason: str) -> None:
    results = read_results(out)
    for part in parts:
        if results.get(part.name, {}).get("status") == "running":
            write_result(out, part, "failed", results[part.name]["seconds"], error=reason)
            print(f"{part.name} failed: {reason}", flush=True)


def _fail_next(parts: Sequence[Part], out: Path, reason: str) -> None:
    part = remaining(parts, out)[0]
    write_result(out, part, "failed", 0.0, error=reason)
    print(f"{part.name} failed: {reason}", flush=True)
