"""A dozen kills of long commands at random moments; benchmarks/kills.py has a hundred and more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_commands_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    jobs = "train, phases and ema;train, replacing a run;tune;collect;select;retrain, language;convert;bundle"
    # In a process of its own, since a process with threads, as pytest's may be, must not fork.
    words = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--out", str(tmp_path), "--kills", "12"]
    done = subprocess.run([*words, "--jobs", jobs], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert sum(row["killed"] for row in rows) >= 12
    assert len({row["job"] for row in rows}) == 8
