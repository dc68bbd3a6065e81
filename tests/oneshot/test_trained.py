"""What a finished retraining gives to later stages."""

import shutil
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.errors import UserError
from engine.run import read_lines
from oneshot.networks.final import FinalNetwork
from oneshot.retrain import Retrain
from oneshot.spaces.read_genotype import find_genotype
from oneshot.trained import TrainedNetwork, network_cost

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "retrained"
    words = [
        *("--network.cells", "3", "--network.channels", "4", "--epochs", "1"),
        *("--device", "cpu", "--genotype", "PC_DARTS_cifar"),
    ]
    assert parse(Retrain, [*words, "--out", str(out)]).execute() == 0
    return out


def test_it_measures_what_training_measured(run: Path) -> None:
    trained = TrainedNetwork(run, CPU)
    last = read_lines(run / "metrics.jsonl")[-1]
    assert (trained.accuracy("val"), trained.accuracy("test")) == (
        last["val_accuracy"],
        last["test_accuracy"],
    )
    assert not trained.network.training
    assert trained.model.genotype == find_genotype("PC_DARTS_cifar")
    assert (trained.model.channels, trained.model.image_size, len(trained.model.classes)) == (1, 8, 10)


def test_its_cost_is_without_the_auxiliary_head(run: Path) -> None:
    trained = TrainedNetwork(run, CPU)
    genotype = trained.model.genotype
    assert trained.cost() == network_cost(FinalNetwork(genotype, 4, 3, 10, 1, auxiliary=True), trained.model)
    assert trained.cost()[1] == sum(p.numel() for p in FinalNetwork(genotype, 4, 3, 10, 1).parameters())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("DONE", None, "continue it with python -m oneshot.retrain"),
        ("model.json", b"{}", "'classes' is missing"),
        ("model.json", None, "cannot be read"),
        ("weights.safetensors", b"1234", "cannot be loaded"),
        ("config.yaml", b"seed: 1\ndata: {name: digits}", "are not those it was trained on"),
    ],
)
def test_damaged_runs_are_one_sentence(
    run: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    if content is None:
        (tmp_path / "copy" / name).unlink()
    else:
        (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        TrainedNetwork(tmp_path / "copy", CPU)


def test_weights_of_another_network_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    model = tmp_path / "copy" / "model.json"
    model.write_text(model.read_text().replace('"cells": 3', '"cells": 4'))
    with pytest.raises(UserError, match="do not fit model"):
        TrainedNetwork(tmp_path / "copy", CPU)


def test_a_supernet_is_not_one(trained_run: Path) -> None:
    with pytest.raises(UserError, match="genotype"):
        TrainedNetwork(trained_run, CPU)
