"""What weights bring with them, normalisation and licence, reaches every later command and the bundle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.command.cli import parse
from engine.config import read_yaml
from engine.errors import UserError
from engine.model import WeightsOrigin
from engine.run import read_json, write_json
from export.bundle.__main__ import MakeBundle
from export.onnx import Export
from ofa.cost import footprints_of
from ofa.evaluate import Evaluate
from ofa.space.arch import smallest
from ofa.space.codes import encode
from ofa.trained import TrainedSupernet
from ofa.tune import Tune
from ofa.weights.networks import find_networks
from ofa.weights.origins import origin_of, origin_of_network

Train = Callable[..., int]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.5, 0.5]
ORIGIN = WeightsOrigin(
    name="tf_efficientnet_lite0",
    source="timm",
    url="https://example.org/weights",
    licence="CC BY-NC 4.0",
    sha256="0123456789abcdef" * 4,
)


def image_facts_of(run: Path) -> dict[str, Any]:
    model = read_json(run / "model.json")
    return {name: model[name] for name in ("mean", "std", "weights")}


@pytest.fixture(scope="module")
def start(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights for colour images that are said to come from outside."""
    run = tmp_path_factory.mktemp("start") / "run"
    numbers = {"mean": ",".join(map(str, MEAN)), "std": ",".join(map(str, STD))}
    flags = ["--data.mean", numbers["mean"], "--data.std", numbers["std"]]
    assert train(run, "--epochs", "1", *flags) == 0
    model = read_json(run / "model.json")
    assert model["mean"] == MEAN and model["weights"] is None
    write_json(run / "model.json", model | {"weights": ORIGIN.model_dump(mode="json")})
    return run


@pytest.fixture(scope="module")
def grown(train: Train, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet that was trained on from it, on digits, which are grey and have another mean."""
    run = tmp_path_factory.mktemp("grown") / "run"
    assert train(run, "--epochs", "1", "--init", str(start)) == 0
    return run


WANTED = {"mean": MEAN, "std": STD, "weights": ORIGIN.model_dump(mode="json")}


def test_training_from_a_run_keeps_its_normalisation_and_origin(
    train: Train, start: Path, grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_facts_of(grown) == WANTED
    config = read_yaml(grown / "config.yaml")
    assert (config["data"]["mean"], config["data"]["std"]) == (MEAN, STD)
    # Resumed by the same words, and replayed from its own configuration.
    assert train(grown, "--epochs", "1", "--init", str(start), "--resume") == 0
    assert train(grown, "--config", str(grown / "config.yaml"), "--epochs", "1", "--resume") == 0
    assert "is finished already" in capsys.readouterr().out


def test_later_commands_normalise_as_the_weights_want(start: Path, grown: Path) -> None:
    for run in (start, grown):
        trained = TrainedSupernet(run, torch.device("cpu"))
        assert (trained.data.mean, trained.data.std) == (MEAN, STD)
        assert next(trained.data.batches("val", 4))[0].shape[1] == 3
    assert parse(Evaluate, ["--run", str(grown), "--arch", "smallest", "--device", "cpu"]).execute() == 0


@pytest.mark.slow
def test_a_tuned_subnet_its_file_and_its_bundle_name_the_source(grown: Path, tmp_path: Path) -> None:
    run = shutil.copytree(grown, tmp_path / "run")
    words = ["--run", str(run), "--arch", "smallest"]
    assert parse(Tune, [*words, "--epochs", "1", "--device", "cpu", "--teacher", "none"]).execute() == 0
    assert image_facts_of(run / "tuned" / "smallest") == WANTED
    assert parse(Export, [*words, "--device", "cpu", "--images", "40", "--max-drop", "50"]).execute() == 0
    manifest = json.loads((run / "export" / "smallest.json").read_text())
    assert manifest["weights"] == WANTED["weights"] and "tuned" in manifest["architecture"]
    trained = TrainedSupernet(run, torch.device("cpu"))
    row, classes = encode(trained.space, smallest(trained.space)), len(trained.model.classes)
    predicted = footprints_of(trained.space, row[None], classes, trained.model.channels).file[0]
    assert manifest["bytes"] <= predicted, "whatever the metadata tell, a limit of the file size holds"
    how = manifest["preprocessing"]
    assert (how["mean"], how["std"], how["channels"]) == (MEAN, STD, "RGB")
    assert parse(MakeBundle, ["--run", str(run)]).execute() == 0
    bundle = json.loads((run / "export" / "smallest" / "manifest.json").read_text())
    assert bundle["files"][0]["weights"] == WANTED["weights"]
    card = (run / "export" / "smallest" / "README.md").read_text()
    assert (
        "started from the weights `tf_efficientnet_lite0` of timm (https://example.org/weights). Their "
        "licence: CC BY-NC 4.0. It forbids commercial use, of this network too. "
        f"The file that was converted has SHA-256 `{ORIGIN.sha256}`."
    ) in card


def test_changed_pixels_are_found_although_the_weights_give_the_mean(train: Train, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (80, 8, 8, 3), np.uint8), np.arange(80) % 4
    arrays = {"x_train": x, "y_train": y, "x_test": x[:8], "y_test": y[:8]}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    data = ["--data.name", "npz", "--data.path", str(tmp_path / "x.npz")]
    own = ["--data.mean", "0.5,0.5,0.5", "--data.std", "0.5,0.5,0.5", "--batch-size", "16"]
    assert train(tmp_path / "run", "--epochs", "1", *data, *own) == 0
    np.savez(tmp_path / "x.npz", **arrays | {"x_train": x[:, ::-1]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"classes, pixels or normalisation changed"):
        TrainedSupernet(tmp_path / "run", torch.device("cpu"))


def test_runs_of_earlier_versions_which_note_no_digest_open(grown: Path, tmp_path: Path) -> None:
    run = shutil.copytree(grown, tmp_path / "run")
    model = read_json(run / "model.json")
    del model["pixels_sha256"]
    write_json(run / "model.json", model)
    assert TrainedSupernet(run, torch.device("cpu")).model.pixels_sha256 is None


@pytest.mark.parametrize(
    ("kind", "licence"),
    [("attentive_nas", "CC BY-NC 4.0"), ("alphanet", "CC BY-NC 4.0"), ("ofa_resnet50", "MIT")],
)
def test_published_supernets_have_the_licence_of_their_source(
    kind: str, licence: str, tmp_path: Path
) -> None:
    (tmp_path / "file.pth").write_bytes(b"abc")
    origin = origin_of(kind, tmp_path / "file.pth")
    assert origin.licence == licence and origin.url is not None
    assert origin.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_of_a_library_need_not_be_its_default_weights(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    file.write_bytes(b"")
    (network,) = find_networks("timm", "resnet18")
    assert origin_of_network(network, file).licence == (
        "Apache-2.0, if these are timm's default weights of that name"
    )
    (network,) = find_networks("torchvision", "resnet18")
    assert origin_of_network(network, file).licence == "unknown"
