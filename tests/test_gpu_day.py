"""benchmarks/gpu_day.py on a GPU that is pretended: every kind of part runs, and is resumed part by part."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.on_gpu.data import find_data, join_pieces
from benchmarks.on_gpu.parts import Part, read_results, remaining, run_in_children, write_result

ROOT = Path(__file__).parents[1]
# One of each kind; the whole rehearsal is `python benchmarks/gpu_day.py --rehearse`.
REHEARSED = (
    "contract",
    "parity",
    "bits",
    "speed gdas nasbench201",
    "speed retraining DARTS_V2",
    "compiled retraining DARTS_V2",
    "evaluation",
    "gdas nasbench201",
    "supernet",
)


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/gpu_day.py", "--rehearse", "--out", str(tmp_path)]
    words += ["--only", ",".join(REHEARSED)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = read_results(tmp_path)
    assert {name: result["status"] for name, result in results.items()} == dict.fromkeys(REHEARSED, "done")
    for check in ("contract", "parity", "bits"):
        found = results[check]["result"]
        # How often a step may wait is a matter of tests/contracts/test_device.py.
        assert found["right"] >= 2 and (found["wrong"] == [] or check == "contract"), found
        assert not [case for case in found["cases"].values() if "error" in case or "skipped" in case]
    ways = results["speed gdas nasbench201"]["result"]
    assert all(ways[way]["ms"] > 0 for way in ("eager", "plain"))
    page = (tmp_path / "gpu_day.md").read_text()
    assert "no figure is of a GPU" in page and "| gdas nasbench201 |" in page
    # The same command would measure nothing again.
    assert remaining([Part(name, 1.0, dict) for name in (*REHEARSED, "other")], tmp_path)[0].name == "other"


def test_without_a_gpu_it_says_so() -> None:
    words = [sys.executable, "benchmarks/gpu_day.py", "--out", "/dev/null/none"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "there is no GPU here" in done.stderr


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from benchmarks.on_gpu.parts import Part, remaining, write_result
out = Path(sys.argv[2])
parts = [Part(name, 0.1, None) for name in ("first", "dies", "hangs", "last")]
for part in remaining(parts, out):
    write_result(out, part, "running", 0.1)
    if part.name == "dies":
        os._exit(7)
    if part.name == "hangs":
        time.sleep(600)
    write_result(out, part, "done", 0.0, result={})
"""


def test_a_part_that_dies_or_hangs_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.on_gpu.parts.GRACE", 1.0)
    parts = [Part(name, 0.1, dict) for name in ("first", "dies", "hangs", "last")]
    run_in_children(parts, tmp_path, ["-c", CHILD, str(ROOT), str(tmp_path)])
    results = read_results(tmp_path)
    assert [results[part.name]["status"] for part in parts] == ["done", "failed", "failed", "done"]
    assert "ended with 7" in results["dies"]["error"] and "no result after" in results["hangs"]["error"]
    assert remaining(parts, tmp_path) == []
    write_result(tmp_path, parts[0], "running", 1.0)
    assert remaining(parts, tmp_path) == parts[:1]


def test_cifar10_may_come_in_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    y = np.arange(16, dtype=np.uint8)
    # Mosaics of 4 images in rows; the second of three is missing.
    folder = tmp_path / "cifar10"
    folder.mkdir()
    np.savez(folder / "meta.npz", y_train=y[:12], y_test=y[12:])
    for split, number, start in (("train", 0, 0), ("train", 2, 8), ("test", 0, 12)):
        tiles = x[start : start + 4].reshape(2, 2, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)
        Image.fromarray(tiles).save(folder / f"x_{split}_{number:02}.webp", lossless=True)
    found = join_pieces(folder)
    assert found is not None
    np.testing.assert_array_equal(found["y_train"], [0, 1, 2, 3, 8, 9, 10, 11])
    np.testing.assert_array_equal(found["x_train"], x[found["y_train"]])
    np.testing.assert_array_equal(found["x_test"], x[12:])
    # The same as .npz files, one after another.
    pieces = tmp_path / "pieces" / "cifar10"
    pieces.mkdir(parents=True)
    np.savez(pieces / "a.npz", x_train=x[:5], y_train=y[:5], x_test=x[12:], y_test=y[12:])
    np.savez(pieces / "b.npz", x_train=x[5:9], y_train=y[5:9])
    joined = join_pieces(pieces)
    assert joined is not None
    np.testing.assert_array_equal(joined["x_train"], x[:9])


def test_data_is_found_where_nas_data_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "data"))
    nothing = find_data(tmp_path / "out")
    assert nothing.cifar10 is None and nothing.named() == "the embedded digits"
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    arrays = {"x_train": np.zeros((2, 32, 32, 3), np.uint8), "y_train": np.arange(2, dtype=np.uint8)}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    np.savez(tmp_path / "data" / "cifar10" / "part.npz", **arrays)
    found = find_data(tmp_path / "out")
    assert found.image_flags() == ["--data", "npz", "--data.path", str(tmp_path / "out" / "cifar10.npz")]
