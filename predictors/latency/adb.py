"""Time ONNX files on an Android phone that is connected by adb, with onnxruntime's own benchmark.

This file stands alone: it needs Python 3.8 and adb on the computer, and nothing on the phone. Kits for
devices hold a copy of it:

    python adb.py --binary onnxruntime_perf_test --library libonnxruntime.so

in the folder of manifest.json; it writes latency.csv there, or continues that file.

A round is one script that visits all items in a new random order, so that adb starts once for each round.
Every visit is a process and a session of its own, for the reasons that bench.py gives.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PHONE = "/data/local/tmp/latency-kit"  # where adb may write and the phone may run programs
COLUMNS = ["name", "round", "runs", "wall_p50", "wall_p90", "threads", "runtime", "machine"]
RUNTIME = "onnxruntime_perf_test"
# Runs of one visit: as many as fit in --seconds, once the first round has told how long an item takes.
FIRST, AT_LEAST, AT_MOST = 20, 10, 200
# The line that the script prints before each item.
ITEM = re.compile(r"item (\d+)$")
FILE = re.compile(r"[\w.-]+\.onnx")  # the names that a kit gives
# Old versions say `P50 Latency is 0.0123sec`.
LATENCY = re.compile(r"P(50|90) Latency(?:: | is )([0-9.e+-]+) ?s")


class Visit:
    """What the benchmark says of one item: seconds of the median and of the 90th percentile of its runs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds: dict[str, float] = {}
        self.last_line = ""


def command(item: dict[str, Any], runs: int, threads: int) -> str:
    """The line of a shell script that times an item.

    The benchmark makes up an input (-I), whose free dimensions are 1, such as the batch, unless -f says
    otherwise; all optimisations are on (-o 99), and denormal numbers count as zero (-z).
    """
    # The name goes into a shell, and a kit comes from another machine.
    if FILE.fullmatch(item["file"]) is None:
        raise ValueError("manifest.json names a file that no kit has: " + item["file"][:200])
    flags = f"-I -m times -r {runs} -e cpu -o 99 -x {threads} -y 1 -z -f side:{item['shape'][-1]}"
    return f"LD_LIBRARY_PATH=. ./{RUNTIME} {flags} ./{item['file']} 2>&1"


def script(visits: Iterable[tuple[int, str]]) -> str:
    """A shell script that says the number of each item and times it.

    Args:
        visits: numbers and commands of the items, in order.
    """
    lines = ["cd " + PHONE]
    for number, line in visits:
        lines += [f"echo item {number}", line]
    return "\n".join(lines) + "\n"


def parse(lines: Iterable[str]) -> Iterator[Visit]:
    """The visits in what the script prints, each as soon as its last line has come.

    Raises:
        ValueError: the benchmark did not say how long an item takes.
    """
    visit = None
    for line in lines:
        line = line.strip()
        start = ITEM.match(line)
        if start:
            if visit is not None:
                raise ValueError(f"item {visit.number} was not timed: {visit.last_line}")
            visit = Visit(int(start.group(1)))
        elif visit is not None:
            visit.last_line = line or visit.last_line
            found = LATENCY.match(line)
            if found:
                visit.seconds[found.group(1)] = float(found.group(2))
            # The benchmark may print its statistics twice; the lines after the first ones are of no item.
            if len(visit.seconds) == 2:
                yield visit
                visit = None
    if visit is not None:
        raise ValueError(f"item {visit.number} was not timed: {visit.last_line}")


def finished(path: Path) -> dict[tuple[str, int], float]:
    """Milliseconds by item name and round of an earlier start; half a last line of the file is removed."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["name"], int(row["round"])): float(row["wall_p50"]) for row in csv.DictReader(file)}


def runs_of(done: dict[tuple[str, int], float], seconds: float) -> dict[str, int]:
    """How many runs of each item that is known fit in a visit.

    Args:
        done: milliseconds by item name and round.
        seconds: of a visit.
    """
    fastest: dict[str, float] = {}
    for (name, _), ms in done.items():
        fastest[name] = min(ms, fastest.get(name, ms))
    return {name: max(AT_LEAST, min(AT_MOST, int(1e3 * seconds / ms))) for name, ms in fastest.items()}


def visits_of(adb: list[str], folder: Path, commands: list[tuple[int, str]]) -> Iterator[Visit]:
    """Run one script on the phone, and yield what it says of each item as soon as it does.

    Args:
        adb: the command.
        folder: where the script is written before it is copied.
        commands: numbers and commands of the items, in order.
    """
    path = folder / "round.sh"
    path.write_text(script(commands), encoding="utf-8")
    subprocess.run([*adb, "push", str(path), PHONE], check=True, capture_output=True, text=True)
    words = [*adb, "shell", f"sh {PHONE}/{path.name}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from parse(process.stdout)


def bench(adb: list[str], folder: Path, out: Path, rounds: int, threads: int, seconds: float) -> None:
    """Append what is missing of `rounds` rounds over the items of folder/manifest.json to the CSV `out`.

    Args:
        adb: the command, with the phone's serial number if there are several phones.
        folder: holds manifest.json and the model files that it names.
        out: the CSV; one that exists is continued.
        rounds, threads: how often each item is visited, and threads of onnxruntime.
        seconds: time for each visit.
    """
    items = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["items"]
    asked = [*adb, "shell", "getprop ro.product.model"]
    machine = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    done = finished(out)
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for turn in range(rounds):
            runs, commands = runs_of(done, seconds), []
            # Seeded by the round, so that a continued run goes through its round in the same order.
            for number in random.Random(turn).sample(range(len(items)), len(items)):
                item = items[number]
                if (item["name"], turn) not in done:
                    commands.append((number, command(item, runs.get(item["name"], FIRST), threads)))
            if not commands:
                continue
            for visit in visits_of(adb, folder, commands):
                name = items[visit.number]["name"]
                p50, p90 = (1e3 * visit.seconds[q] for q in ("50", "90"))
                done[name, turn] = p50
                numbers = [runs.get(name, FIRST), f"{p50:.6g}", f"{p90:.6g}"]
                writer.writerow([name, turn, *numbers, threads, RUNTIME, machine])
                file.flush()  # a cable that comes off loses one item at most
            print(f"round {turn + 1} of {rounds}", flush=True)


def push(adb: list[str], folder: Path, programs: list[Path]) -> None:
    """Copy the benchmark and the model files to the phone."""
    subprocess.run([*adb, "shell", "mkdir -p " + PHONE], check=True, capture_output=True, text=True)
    files = [*sorted(folder.glob("*.onnx")), folder / "weights.bin", *programs]
    subprocess.run([*adb, "push", *map(str, files), PHONE], check=True, capture_output=True, text=True)
    subprocess.run(
        [*adb, "shell", f"chmod 755 {PHONE}/{RUNTIME}"], check=True, capture_output=True, text=True
    )


def main() -> None:
    """Time the files beside this script on the phone, as `python adb.py --binary FILE`."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Time the ONNX files of this folder on an Android phone.")
    parser.add_argument("--binary", type=Path, required=True, help="onnxruntime_perf_test, built for Android")
    parser.add_argument(
        "--library", type=Path, action="append", default=[], help="libonnxruntime.so, if it needs one"
    )
    parser.add_argument("--serial", help="of the phone, as `adb devices` lists it, if there are several")
    parser.add_argument("--adb", default="adb", help="the adb program")
    parser.add_argument(
        "--out", type=Path, default=here / "latency.csv", help="the CSV; one that exists is continued"
    )
    parser.add_argument("--rounds", type=int, default=6, help="times that each file is measured")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime")
    parser.add_argument("--seconds", type=float, default=0.03, help="time for each file in each round")
    flags = parser.parse_args()
    adb = [flags.adb, *(["-s", flags.serial] if flags.serial else [])]
    if flags.binary.name != RUNTIME:
        parser.error(f"--binary must be named {RUNTIME}")
    try:
        push(adb, here, [flags.binary, *flags.library])
        bench(adb, here, flags.out, flags.rounds, flags.threads, flags.seconds)
    except FileNotFoundError as error:
        parser.error(
            f"{error.filename} was not found; install adb (Android platform tools), or name it by --adb"
        )
    except subprocess.CalledProcessError as error:
        parser.error(f"{' '.join(error.cmd[:3])} failed: {error.stderr.strip()}; see `adb devices`")
    except ValueError as error:
        parser.error(f"{error}; try the command in {PHONE}/round.sh by hand in `adb shell`")
    print("written:", flags.out)


if __name__ == "__main__":
    main()
