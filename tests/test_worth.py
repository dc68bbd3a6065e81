"""The parts of benchmarks/worth.py on which its verdict rests."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.command.cli import parse
from engine.compute.macs import count_macs
from engine.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from alone import Alone, mobilenet
from worth import PRESETS, budgets_of, run_part
from worth_table import read_results, table


def write_result(out: Path, seed: int, count: int, points: list[float]) -> None:
    alone = {"test_accuracy": 0.9, "training_cpu_seconds": 36.0, "capped": seed == 0}
    rows = []
    for i, value in enumerate(points):
        row = {"budget": f"{i}M", "taken": 0.5, "tuned": 0.9 + value / 100, "points": value}
        rows.append(row | {"counts": "arch", "alone": {"arch": alone}})
    facts = {"name": "digits", "seed": seed, "budgets": count, "cpu_seconds": 360.0, "tuned": True}
    path = out / "digits" / f"seed{seed}" / f"k{count}" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(facts | {"rows": rows}))


def test_the_table_and_its_verdict(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_result(tmp_path, seed, 1, [-2.0])
        write_result(tmp_path, seed, 3, [-1.0 + seed, 2.0 + seed])
    text = table(read_results(tmp_path))
    assert "| digits | 1 | 2 | 88.0 | 90.0 | -2.0 ± 0.0 | 0M -2.0 | 0.10 | 0.01 | 50% | 0% |" in text
    assert "| +1.0 ± 0.7 | 0M -0.5, 1M +2.5 | 0.10 | 0.03 |" in text
    assert "- digits: from K = 3 on the supernet was no worse on average." in text


def test_budgets_are_evenly_spread() -> None:
    assert budgets_of(PRESETS["cifar3k"], 3) == ["2M", "4M", "8M"]
    assert budgets_of(PRESETS["cifar3k"], 1) == ["4M"]


def test_a_part_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    words = ["-c", "open('ran', 'a').write('x'); sum(range(10**6))"]
    first = run_part(tmp_path, "part", words)
    assert first["status"] == 0 and first["cpu_seconds"] > 0
    assert run_part(tmp_path, "part", words) == first
    assert Path("ran").read_text() == "x"


@pytest.mark.slow
@pytest.mark.parametrize(("macs", "side", "last"), [(4_000_000, 32, 4), (300_000, 16, 1)])
def test_a_mobilenet_of_the_macs(macs: int, side: int, last: int) -> None:
    network = mobilenet(macs, side, classes=10, channels=1, dropout=0.1)
    x = torch.zeros(1, 1, side, side)
    assert 0.7 * macs < count_macs(network, x) <= macs
    features = network.get_submodule("features")
    assert isinstance(features, nn.Module) and features.eval()(x).shape[-1] >= last


@pytest.mark.slow
def test_no_mobilenet_is_so_small() -> None:
    with pytest.raises(UserError, match="No MobileNetV3 at 16 px"):
        mobilenet(1000, 16, classes=10, channels=1, dropout=0.1)


@pytest.mark.slow
def test_a_network_is_trained_alone_for_a_time() -> None:
    words = ["--config", "ofa/digits", "--arch", "smallest", "--cpu-seconds", "0.5", "--out", "alone"]
    assert parse(Alone, words).execute() == 0
    result = json.loads(Path("alone/result.json").read_text())
    assert result["epochs"] >= 1 and not result["capped"]
    assert 0 < result["test_accuracy"] < 1 and result["training_cpu_seconds"] > 0
