"""Kill each long command at random moments, go on with it, and compare with a run that nobody disturbed.

    python benchmarks/kills.py --kills 120 --out runs/kills
    python benchmarks/kills.py --kills 20 --jobs "tune;bundle" --out runs/kills

A kill is SIGKILL, at one of three kinds of moments, drawn from the seed:

- time: after a random share of the time that the command takes;
- between: before a random operation on files (open, rename, remove, mkdir, link) in the command's folder;
- inside: up to 5 ms after a file was opened for writing, while it is being written.

A third of the attempts is killed twice. Then the command runs to its end, as its messages advise, and all
that it leaves must be what the undisturbed one left: weights, states, metrics, pairs, selections, files. Each
result is a line of kills.jsonl in `--out`: the same command continues where it stopped. It ends with a table.

Every attempt is a child of a process that has imported everything: a fork costs milliseconds, an import
seconds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kills_jobs import JOBS, Job, differences, prepare
from rich.console import Console
from rich.table import Table

from engine.command.cli import Command, main
from engine.run import append_line, read_lines

MOMENTS = ("time", "between", "inside")
INSIDE = 0.005  # seconds after a file was opened for writing
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


class Kill(NamedTuple):
    """When a process is killed: after some seconds, or some seconds after its n-th operation on files."""

    moment: str
    seconds: float
    event: int = 0


class Undisturbed(NamedTuple):
    """A command that was not killed: where its folder is, how long it took, its operations on files."""

    folder: Path
    seconds: float
    events: int
    opens: int


class Events:
    """Counts the operations on files in a folder, and kills the process at one of them.

    An audit hook of Python sees them, before they happen.
    """

    def __init__(self, folder: Path, kill: Kill | None) -> None:
        self.folder, self.kill = str(folder.resolve()), kill
        self.all, self.opens = 0, 0
        sys.addaudithook(self)

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        """Count an event; Python calls this."""
        opens = name == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if not (opens or name in WRITES) or not isinstance(args[0], str | os.PathLike):
            return
        if not os.path.abspath(args[0]).startswith(self.folder):
            return
        self.all, self.opens = self.all + 1, self.opens + opens
        if self.kill is None or self.kill.moment == "time":
            return
        if self.kill.moment == "between" and self.all == self.kill.event:
            _die()
        if self.kill.moment == "inside" and opens and self.opens == self.kill.event:
            timer = threading.Timer(self.kill.seconds, _die)
            timer.daemon = True
            timer.start()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_child(
    folder: Path, command: type[Command], words: Sequence[str], kill: Kill | None = None
) -> tuple[int, int, int]:
    """Run a command in a folder, in a process of its own.

    Returns:
        Its exit status (negative if a signal ended it), its operations on files, and how many were opens.
    """
    counted, counts = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_command(folder, command, words, kill, counts)
    os.close(counts)
    deadline = time.monotonic() + (kill.seconds if kill and kill.moment == "time" else 600)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    with os.fdopen(counted) as file:
        numbers = file.read().split() or ["0", "0"]
    return os.waitstatus_to_exitcode(status), int(numbers[0]), int(numbers[1])


def _be_the_command(
    folder: Path, command: type[Command], words: Sequence[str], kill: Kill | None, counts: int
) -> None:
    """What the child does; it does not return."""
    status = 99
    try:
        os.chdir(folder)
        log = os.open(folder.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        events = Events(folder, kill)
        try:
            main(command, list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        os.write(counts, f"{events.all} {events.opens}".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def undisturbed(name: str, job: Job, out: Path) -> Undisturbed:
    """Run a job without a kill, or find what it left."""
    folder, note = out / "undisturbed" / name, out / "undisturbed" / f"{name}.json"
    if not note.exists():
        work = fresh_folder(job, out)
        started = time.monotonic()
        status, events, opens = run_child(work, job.command, [*job.words, *job.first])
        seconds = time.monotonic() - started
        assert status == 0, f"'{name}' ended with {status}: see {work.parent}/log.txt"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        work.rename(folder)
        note.write_text(json.dumps([seconds, events, opens]))
    return Undisturbed(folder, *json.loads(note.read_text()))


def fresh_folder(job: Job, out: Path) -> Path:
    """What a job starts from, always in the same place: some paths get into config.yaml."""
    folder = out / "attempt" / "work"
    shutil.rmtree(out / "attempt", ignore_errors=True)
    shutil.copytree(out / "base" / job.base, folder)
    return folder


def draw_kill(rng: random.Random, known: Undisturbed) -> Kill:
    """A moment at which to kill."""
    moment = rng.choice(MOMENTS)
    if moment == "time":
        return Kill(moment, rng.uniform(0, known.seconds))
    count = known.events if moment == "between" else known.opens
    return Kill(moment, rng.uniform(0, INSIDE), rng.randint(1, count))


def attempt(name: str, job: Job, known: Undisturbed, seed: int, out: Path) -> dict[str, Any]:
    """Kill a job once or twice, let it run to its end, and compare."""
    rng = random.Random(f"{seed} {name}")
    folder = fresh_folder(job, out)
    first, again = [*job.words, *job.first], [*job.words, *job.resume]
    kills: list[str] = []
    statuses: list[int] = []
    for _ in range(rng.choice((1, 1, 2))):
        kill = draw_kill(rng, known)
        # Whoever replaces a run says so again: the kill may have come before the old one was gone.
        words = first if not kills or job.first else again
        status, _, _ = run_child(folder, job.command, words, kill)
        kills.append(f"{kill.moment} {kill.event or round(kill.seconds, 3)}")
        statuses.append(status)
    last, _, _ = run_child(folder, job.command, again)
    if last and job.first:
        last, _, _ = run_child(folder, job.command, first)
    found = [f"the command ended with {last}"] if last else differences(known.folder, folder)
    return {"job": name, "seed": seed, "kills": kills, "killed": statuses.count(-9), "differences": found}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each job: kills that hit, by their moments, and attempts that ended otherwise."""
    table = Table("command", "attempts", "kills", *MOMENTS, "not as undisturbed")
    for name in dict.fromkeys(row["job"] for row in rows):
        of_job = [row for row in rows if row["job"] == name]
        moments = Counter(kill.split()[0] for row in of_job for kill in row["kills"])
        bad = sum(bool(row["differences"]) for row in of_job)
        killed = sum(row["killed"] for row in of_job)
        cells = [len(of_job), killed, *(moments[moment] for moment in MOMENTS), bad]
        table.add_row(name, *map(str, cells))
    Console(width=100).print(table)
    for row in rows:
        if row["differences"]:
            said = "; ".join(row["differences"][:4])
            print(f"{row['job']}, seed {row['seed']}, killed at {', '.join(row['kills'])}: {said}")
    print(f"{sum(row['killed'] for row in rows)} kills in {len(rows)} attempts")


def run_kills(out: Path, kills: int, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Kill the jobs by turns until there are `kills` kills; what is in kills.jsonl counts."""
    torch.set_num_threads(1)
    jobs = {name: JOBS[name] for name in names}
    out.mkdir(parents=True, exist_ok=True)
    prepare(out / "base", lambda *words: run_child(*words)[0], {job.base for job in jobs.values()})
    path = out / "kills.jsonl"
    rows = [row for row in read_lines(path) if row["job"] in jobs]
    done = {(row["job"], row["seed"]) for row in rows}
    while sum(row["killed"] for row in rows) < kills:
        for name, job in jobs.items():
            if (name, seed) in done or sum(row["killed"] for row in rows) >= kills:
                continue
            rows.append(attempt(name, job, undisturbed(name, job, out), seed, out))
            append_line(path, rows[-1])
        seed += 1
    return rows


def run() -> int:
    """Parse the flags, kill, and print the table; 1 if an attempt ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many kills in all (default: 100)")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--jobs", default="all", help=f"names separated by ;, or all: {'; '.join(JOBS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempts; then one more each")
    args = parser.parse_args()
    names = list(JOBS) if args.jobs == "all" else args.jobs.split(";")
    rows = run_kills(args.out.resolve(), args.kills, names, args.seed)
    print_table(rows)
    return int(any(row["differences"] for row in rows))


if __name__ == "__main__":
    sys.exit(run())
