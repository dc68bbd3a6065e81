"""The script that times a kit on an Android phone, with a made-up adb and benchmark.

What the benchmark prints is what onnxruntime's prints: today, and in old versions.
"""

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UserError
from ofa.space.codes import sample_codes
from ofa.space.space import Space
from predictors.latency import adb
from predictors.latency.kit import distinct_layers, export_kit
from predictors.latency.table import networks_of
from predictors.latency.timings import build_table, read_timings

# adb push copies, adb shell runs the command with the phone's folder elsewhere.
ADB = """#!/bin/sh
[ "$1" = -s ] && shift 2
what=$1; shift
if [ "$what" = push ]; then
    for last; do :; done
    for file; do [ "$file" = "$last" ] || cp "$file" "{phone}/"; done
    sed -i "s#/data/local/tmp/latency-kit#{phone}#g" {phone}/round.sh 2>/dev/null
    exit 0
fi
case "$*" in
    getprop*) echo "Pixel 7" ;;
    *) sh -c "$(echo "$*" | sed "s#/data/local/tmp/latency-kit#{phone}#g")" ;;
esac
"""

# Times 0.002 s for each pixel of a side; the file `broken` in its folder makes it fail.
BENCHMARK = """#!/bin/sh
[ -e broken ] && {{ echo "failed to load model: $*"; exit 1; }}
side=$(echo "$*" | sed 's/.*side:\\([0-9]*\\).*/\\1/')
echo "Session creation time cost: 0.0102016 s"
echo "First inference time cost: 2 ms"
echo "Total inference requests: 20"
echo "Runs:20"
echo "Min Latency: 0.00183404 s"
echo "P50 Latency: $(echo "$side" | awk '{{printf "%g", 2e-3 * $1}}') s"
echo "P90 Latency: $(echo "$side" | awk '{{printf "%g", 3e-3 * $1}}') s"
echo "P999 Latency: 0.00190312 s"
"""


@pytest.fixture
def kit(tiny: Space, tmp_path: Path) -> Path:
    """A kit with a benchmark and an adb beside it, and the folder of a phone."""
    rows = np.unique(sample_codes(tiny, 4, np.random.default_rng(0)), axis=0)
    folder, phone = tmp_path / "kit", tmp_path / "phone"
    phone.mkdir()
    export_kit(tiny, distinct_layers(tiny, 5, 1)[:6], rows, 5, 1, folder, lambda note: None)
    for name, text in (("adb", ADB), (adb.RUNTIME, BENCHMARK)):
        (tmp_path / name).write_text(text.format(phone=phone))
        (tmp_path / name).chmod(0o755)
    return folder


def run(kit: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    programs = ["--binary", str(kit.parent / adb.RUNTIME), "--adb", str(kit.parent / "adb")]
    words = [sys.executable, "-I", str(kit / "adb.py"), *programs, "--rounds", "2", *flags]
    return subprocess.run(words, capture_output=True, text=True)


def test_a_phone_fills_a_table(kit: Path, tiny: Space) -> None:
    assert run(kit, "--serial", "ABC").returncode == 0
    items = json.loads((kit / "manifest.json").read_text())["items"]
    with (kit / "latency.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["name"], row["round"]) for row in rows) == sorted(
        (item["name"], str(turn)) for item in items for turn in range(2)
    )
    sides = {item["name"]: item["shape"][-1] for item in items}
    for row in rows:
        assert float(row["wall_p50"]) == pytest.approx(2 * sides[row["name"]])
        assert float(row["wall_p90"]) == pytest.approx(3 * sides[row["name"]])
    timings = read_timings(kit / "latency.csv")
    assert (timings.clock, timings.threads, timings.machine) == ("wall", 1, "Pixel 7")
    table, _ = build_table(timings, "pixel7", tiny, 5, 1)
    assert len(networks_of(table)[0]) == len([name for name in sides if name.startswith("net-")])
    assert all(network.p90_ms == pytest.approx(1.5 * network.ms) for network in table.networks)


def test_what_a_cable_interrupted_is_continued(kit: Path) -> None:
    assert run(kit).returncode == 0
    path = kit / "latency.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:9])
    assert run(kit).returncode == 0
    assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())


def test_a_benchmark_that_fails_is_quoted(kit: Path) -> None:
    (kit.parent / "phone" / "broken").touch()
    failed = run(kit)
    assert failed.returncode == 2
    assert "was not timed: failed to load model: -I -m times" in failed.stderr
    missing = run(kit, "--adb", "no-such-adb")
    assert missing.returncode == 2 and "install adb" in missing.stderr
    # Any program that fails and says why stands for an adb without a phone.
    refused = run(kit, "--adb", "ls")
    assert "ls shell mkdir" in refused.stderr and "failed: ls: " in refused.stderr
    with pytest.raises(UserError, match="holds no timings"):
        read_timings(kit / "latency.csv")


def test_old_and_new_benchmarks_are_understood() -> None:
    new = ["item 3", "Runs:20", "P50 Latency: 0.00185674 s", "P90 Latency: 1.9e-05 s", "P999 Latency: 0.1 s"]
    old = ["item 4", "Total iterations:1000", "P50 Latency is 0.0587108sec", "P90 Latency is 0.0599845sec"]
    first, second = adb.parse([*new, *new[2:], *old])
    assert (first.number, first.seconds) == (3, {"50": 0.00185674, "90": 1.9e-05})
    assert (second.number, second.seconds) == (4, {"50": 0.0587108, "90": 0.0599845})


def test_it_needs_python_3_8_and_nothing_else() -> None:
    tree = ast.parse(Path(adb.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module and node.module.partition(".")[0] in sys.stdlib_module_names
        elif isinstance(node, ast.Import):
            assert all(alias.name in sys.stdlib_module_names for alias in node.names)


def test_no_other_file_of_the_phone_is_run() -> None:
    for name in ("a;reboot.onnx", "../x.onnx", "$(id).onnx", "a b.onnx"):
        with pytest.raises(ValueError, match="names a file that no kit has"):
            adb.command({"file": name, "shape": [1, 1, 8, 8]}, 10, 1)
