"""Run a run again from its config.yaml, and say where the first difference is."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.command.cli import Command, main
from engine.command.start import as_typed, say, started_by_ofa
from engine.errors import UserError
from engine.replay.differences import compare_runs, environment_differences
from engine.run import Run, read_json
from engine.runs.listing import kind_of

# The commands that write each kind of run. A converted network has no env.json: its source is elsewhere.
COMMANDS = {
    "supernet": "ofa.train",
    "alone": "ofa.train",
    "tuned": "ofa.tune",
    "search": "oneshot.search",
    "retrained": "oneshot.retrain",
}


class Replay(Command):
    """Run a finished run again in a new folder, and say where the first difference is.

    The settings are those of its config.yaml, with as many processes. Paths in it that do not begin at the
    root are looked up from the current folder, as they were then. metrics.jsonl is compared line by line,
    weights tensor by tensor and bit for bit, other files byte by byte. Exit status: 0 all is the same, 1 not.

    examples:
      python -m engine.replay runs/supernet
      python -m engine.replay runs/supernet/tuned/600M --out runs/again
    """

    main_flags: ClassVar[tuple[str, ...]] = ("--out", "--resume", "--overwrite")

    run: CliPositionalArg[Path] = Field(description="folder of a finished run")
    out: Path | None = Field(None, description="folder to run it in; none: RUN-replay")
    resume: bool = Field(False, description="continue a replay that was interrupted")
    overwrite: bool = Field(False, description="replace an earlier replay")

    def execute(self) -> int:
        """Run it again and compare: 0 the same, 1 different, or the status of a run that ended early."""
        run = Run.open(self.run, "RUN")
        kind = kind_of(run.path, run.config)
        if kind not in COMMANDS:
            raise UserError(
                f"'{self.run}' is not the folder of a training or a search, so nothing can be run again; "
                "name one of those that ofa runs lists."
            )
        module = COMMANDS[kind]
        out = self.out or self.run.resolve().with_name(f"{self.run.resolve().name}-replay")
        if out.resolve() == self.run.resolve():
            raise UserError(f"--out {out} is the run itself; choose another folder.")
        say(f"runs python -m {module} again in {out}")
        status = _run_again(self._words(run, module, out))
        if status:
            print(f"the replay ended with status {status}, so nothing was compared", file=sys.stderr)
            return status
        # ofa.tune writes a folder for each subnet, of the same name as here.
        return _report(run.path, out / run.path.resolve().name if kind == "tuned" else out)

    def _words(self, run: Run, module: str, out: Path) -> list[str]:
        """The command line of the run, of several processes if it had several."""
        words = [sys.executable, "-m"]
        ranks = run.config.get("ranks") or 1
        if ranks > 1:
            words += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        words += [module, "--config", str(run.path / "config.yaml"), "--out", str(out)]
        for flag, given in (("--resume", self.resume), ("--overwrite", self.overwrite)):
            words += [flag] if given else []
        return words


def _run_again(words: list[str]) -> int:
    """Run a command line as another process, which gets the signals of this one; its exit status."""
    environment = dict(os.environ)
    if started_by_ofa():
        # `python -m` would look in the current folder first, where the user may have an export.py.
        environment["PYTHONSAFEPATH"] = "1"
    process = subprocess.Popen(words, env=environment)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    # Without this Ctrl-C would end only this process, and nobody would wait for the other's checkpoint.
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in signals}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(old: Path, new: Path) -> int:
    """Print what is the same and what is not; 0 if everything is."""
    for line in environment_differences(read_json(old / "env.json"), read_json(new / "env.json")):
        print(f"another environment: {line}")
    found = compare_runs(old, new)
    same = [name for name, difference in found.items() if not difference]
    different = {name: difference for name, difference in found.items() if difference}
    print(f"the same: {', '.join(same) or 'nothing'}")
    for name, difference in different.items():
        print(f"different: {name}: {difference}")
    if different:
        print(as_typed(f"'{new}' is not the same as '{old}'; see docs/reliability.md for what must be equal"))
        return 1
    print(f"'{new}' is the same as '{old}'")
    return 0


if __name__ == "__main__":
    main(Replay)
