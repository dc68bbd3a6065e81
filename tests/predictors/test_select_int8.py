"""Selection in 8 bits measures as 8-bit files compute, and never mixes that with float32."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.errors import UserError
from engine.run import read_lines
from ofa.space.arch import Arch
from ofa.trained import TrainedSupernet
from predictors.accuracy.pairs import read_pairs
from predictors.collect import Collect
from predictors.select import Select


@pytest.mark.slow
def test_everything_of_a_selection_in_8_bits_is_in_8_bits(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    left = shutil.ignore_patterns("selected", "export", "pairs*", "optuna.journal", "tuned", "report")
    shutil.copytree(trained_run, run, ignore=left)
    trained = TrainedSupernet(run, torch.device("cpu"))
    words = ["--run", str(run), "--precision", "int8"]
    with pytest.raises(UserError, match=r"run python -m predictors\.collect .* --precision int8 first"):
        parse(Select, [*words, "--flops", "60k"]).execute()
    assert parse(Collect, [*words, "--count", "12"]).execute() == 0
    assert not (run / "pairs.jsonl").exists() and read_pairs(run) == []
    pairs = read_pairs(run, "int8")
    different = 0
    for pair in pairs:
        assert pair.val_accuracy == trained.accuracy(pair.arch, "val", "int8")
        different += pair.val_accuracy != trained.accuracy(pair.arch, "val")
    assert len(pairs) == 12 and different > 0, "else nothing is tested"
    assert parse(Select, [*words, "--flops", "60k", "--measure", "2"]).execute() == 0
    chosen = json.loads((run / "selected" / "60k.json").read_text())
    assert chosen["precision"] == "int8"
    arch = Arch.model_validate(chosen["arch"])
    assert chosen["val_accuracy"] == trained.accuracy(arch, "val", "int8")
    # In float32 afterwards: from pairs and a study of its own.
    assert parse(Collect, ["--run", str(run), "--count", "12"]).execute() == 0
    assert parse(Select, ["--run", str(run), "--flops", "60k", "--measure", "2"]).execute() == 0
    chosen = json.loads((run / "selected" / "60k.json").read_text())
    assert chosen["precision"] == "float32"
    for candidate in [chosen, *chosen["candidates"]]:
        arch = Arch.model_validate(candidate["arch"])
        assert candidate["val_accuracy"] == trained.accuracy(arch, "val")
    assert len(read_lines(run / "pairs.int8.jsonl")) == 12


def test_what_decides_in_float32_is_refused() -> None:
    with pytest.raises(UserError, match="--tune-finalists decides by accuracies in float32"):
        parse(Select, ["--flops", "1M", "--precision", "int8", "--tune-finalists", "2"])
