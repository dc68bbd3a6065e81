"""The script that goes to devices: what it needs, how often it runs, and how far rounds agree."""

import ast
import math
import sys
from pathlib import Path

import pytest

from engine import onnx_timing
from engine.onnx_timing import WARM_UP, halves_of, time_runs


def test_it_needs_python_3_8_numpy_and_onnxruntime_only() -> None:
    source = Path(onnx_timing.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.parametrize(("seconds", "at_least", "at_most", "runs"), [(0.0, 5, 9, 5), (1e9, 5, 9, 9)])
def test_runs_are_counted_after_the_warm_up(seconds: float, at_least: int, at_most: int, runs: int) -> None:
    calls: list[int] = []
    wall, cpu = time_runs(lambda: calls.append(1), 1, seconds, at_least, at_most)
    assert (len(wall), len(cpu), len(calls)) == (runs, runs, runs + WARM_UP)
    assert min(wall) >= 0 and min(cpu) >= 0


def test_without_a_most_the_time_decides() -> None:
    wall, _ = time_runs(lambda: None, 2, 0.02, 5, math.inf)
    assert len(wall) > onnx_timing.AT_MOST


def test_halves_are_even_and_odd_rounds() -> None:
    assert halves_of({0: 1.0, 1: 3.0, 2: 2.0}) == (1.5, 3.0)
    assert halves_of({0: 1.0, 2: 2.0}) is None
