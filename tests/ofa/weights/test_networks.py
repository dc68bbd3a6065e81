"""Single networks: recognised by their tensors, loaded in order, and compared by their logits."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from originals import original, shaken
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.command.cli import parse
from engine.errors import UserError
from export.source import open_export_source
from ofa.convert import Convert
from ofa.space.arch import largest, smallest
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.trained import TrainedSupernet
from ofa.trained import load_network as load_run
from ofa.tune import Tune
from ofa.weights.networks import Network, networks_of, packaged_networks
from ofa.weights.order import definition_order, load_in_order
from ofa.weights.reading import read_checkpoint
from ofa.weights.recognition import fitting_networks, recognise
from predictors.collect import Collect

# A network of no packaged entry: half of MobileNetV2, in a space that is larger than it everywhere.
STAGES = (
    (8, 1, 1, 1),
    (16, 2, 6, 2),
    (16, 3, 6, 2),
    (32, 4, 6, 2),
    (48, 3, 6, 1),
    (80, 3, 6, 2),
    (160, 1, 6, 1),
)


def own_space() -> dict[str, object]:
    """Widths, depths, kernels and expansions of which those of the network are not the last."""
    stages = []
    for width, depth, expand, stride in STAGES:
        more_depths = [depth, depth + 1] if depth > 1 else [1]
        stage = {"width": [width // 2, width, width + 8], "depth": more_depths, "stride": stride}
        stages.append(
            stage | {"kernel": [3, 5], "expand": [expand, 8] if expand > 1 else [1], "act": "relu6"}
        )
    head = {"width": [1280, 1288], "act": "relu6"}
    stem = {"width": [16, 24], "act": "relu6"}
    return {"name": "half", "resolution": [64, 96], "stem": stem, "stages": stages, "head": head}


def own_network(folder: Path) -> Path:
    """The YAML files of that space and of the network in it."""
    arch = {
        "resolution": 64,
        "width": [16, *(stage[0] for stage in STAGES), 1280],
        "depth": [stage[1] for stage in STAGES],
        "kernel": [3] * len(STAGES),
        "expand": [stage[2] for stage in STAGES],
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(own_space()))
    (folder / "arch.json").write_text(str(arch).replace("'", '"'))
    entry: dict[str, Any] = {
        "space": "space.yaml",
        "arch": "arch.json",
    }  # beside it, wherever the command runs
    entry |= {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 64, "licence": "mine"}
    (folder / "half.yaml").write_text(yaml.safe_dump(entry))
    return folder / "half.yaml"


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def half() -> nn.Module:
    return shaken(timm.create_model("mobilenetv2_050", num_classes=12)).eval()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_network_and_the_largest_compute_the_same(
    half: nn.Module, training: bool, tmp_path: Path
) -> None:
    found = recognise(half.state_dict(), "Module", "own", str(own_network(tmp_path)))
    space = found.network.load_space()
    arch = found.network.find_arch(space)
    supernet = Supernet(space, 12)
    assert not load_in_order(supernet, arch, found.tensors)
    # float64, since BatchNorm of few values amplifies rounding in train mode.
    supernet.double().train(training)
    half.double().train(training)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted = half(x)
        assert relative(supernet(x, arch), wanted) < 1e-10
        assert relative(extract(supernet, arch)(x), wanted) < 1e-10
        assert relative(supernet(x, largest(space).model_copy(update={"resolution": 64})), wanted) < 1e-10
        assert relative(supernet(x, smallest(space)), wanted) > 0.1
    importance = supernet.block(1, 0).project.conv.weight.abs().sum((0, 2, 3))
    assert (importance.diff() <= 0).all(), "narrower subnets keep the best channels"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of tiny images."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (48, 8, 8, 3), np.uint8), np.arange(48) % 12
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    return path


def converted(file: Path, *flags: str, images: Path) -> Path:
    """The run folder that ofa.convert makes of a file."""
    run = file.parent / "run"
    words = [str(file), *flags, "--data.name", "npz", "--data.path", str(images), "--out", str(run)]
    assert parse(Convert, [*words, "--overwrite"]).execute() == 0
    return run


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_of_ones_own_becomes_a_run(
    suffix: str, half: nn.Module, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, described = tmp_path / f"half{suffix}", own_network(tmp_path)
    if suffix == ".pth":
        torch.save({"state_dict": half.state_dict()}, file)
    else:
        save_file(half.state_dict(), file)
    run = converted(file, "--from", "own", "--as", str(described), images=images)
    said = capsys.readouterr().out
    assert "half of own, licence of the weights: mine" in said
    assert "the classifier of 12 classes is kept" in said
    assert f"python -m ofa.tune --run {run} --arch" in said
    assert f"--init {run} --data.name npz --data.path {images} --out" in said
    assert not open_export_source(run, torch.device("cpu")).searchable, "predictors.report would refuse it"
    model, supernet = load_run(run)
    assert (model.mean, model.std) == ((0.5,) * 3, (0.25,) * 3)
    assert model.weights is not None and (model.weights.name, model.weights.licence) == ("half", "mine")
    assert model.converted is not None and model.pretrained_only
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative(supernet.eval()(x, model.converted), half(x)) < 1e-5
        # What evaluate and export take is the network as it came, not calibrated anew.
        trained = TrainedSupernet(run, torch.device("cpu"))
        assert relative(trained.subnet(model.converted)(x), half(x)) < 1e-5


def test_what_a_library_says_of_its_default_weights_is_named_as_such(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = timm.create_model("mobilenetv3_small_100", num_classes=12)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    name = ["--from", "timm", "--as", "mobilenetv3_small_100"]
    converted(tmp_path / "net.pth", *name, images=images)
    said = capsys.readouterr().out
    assert "mean 0.485,0.456,0.406 and deviation 0.229,0.224,0.225 are those of timm's default" in said


def test_another_number_of_classes_gets_a_new_classifier(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = shaken(timm.create_model("mobilenetv2_050"))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    described = own_network(tmp_path)
    run = converted(tmp_path / "net.pth", "--from", "own", "--as", str(described), images=images)
    assert "the classifier is new" in capsys.readouterr().out
    assert load_run(run)[1].classifier.weight.shape[0] == 12


def test_a_converted_network_is_tuned_where_it_is_named_and_by_labels_alone(
    half: nn.Module, images: Path, tmp_path: Path
) -> None:
    torch.save(half.state_dict(), tmp_path / "half.pth")
    described = own_network(tmp_path)
    run = converted(tmp_path / "half.pth", "--from", "own", "--as", str(described), images=images)
    words = ["--run", str(run), "--epochs", "1", "--batch-size", "16", "--device", "cpu"]
    with pytest.raises(UserError, match="name the network to tune with --arch"):
        parse(Tune, words).execute()
    assert parse(Tune, [*words, "--arch", str(tmp_path / "arch.json")]).execute() == 0
    model = load_run(run / "tuned" / "arch")[0]
    assert model.tuned is not None and model.tuned.teacher == "none"
    assert not model.pretrained_only and model.converted is None


@pytest.mark.slow
def test_training_starts_from_a_converted_network(half: nn.Module, images: Path, tmp_path: Path) -> None:
    torch.save(half.state_dict(), tmp_path / "half.pth")
    described = own_network(tmp_path)
    run = converted(tmp_path / "half.pth", "--from", "own", "--as", str(described), images=images)
    with pytest.raises(UserError, match="is a start for training"):
        parse(Collect, ["--run", str(run), "--device", "cpu"]).execute()
    # A learning rate that moves nothing shows what the training started from.
    settings = ["--epochs", "1", "--batch-size", "8", "--sgd.lr", "1e-30", "--evaluate-random", "0"]
    data = ["--data.name", "npz", "--data.path", str(images), "--device", "cpu"]
    words = ["--init", str(run), "--sandwich.random", "0", "--arch", "smallest", *settings, *data]
    assert parse(Train, [*words, "--out", str(tmp_path / "alone")]).execute() == 0
    source, (model, alone) = load_run(run)[1], load_run(tmp_path / "alone")
    assert (model.mean, model.weights) == ((0.5,) * 3, load_run(run)[0].weights)
    theirs, ours = source.slices(smallest(source.space)), alone.slices(largest(alone.space))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-25)
    with pytest.raises(UserError, match="is of space 'half', whose weights are not those of 'digits'"):
        parse(Train, [*words, "--space", "digits", "--out", str(tmp_path / "other")]).execute()
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", packaged_networks(), ids=lambda network: f"{network.source}-{network.name}"
)
def test_every_network_is_recognised_and_computes_the_same(network: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = shaken(original(network.model_dump()))
    # Sorted by name, unlike a state_dict and the files of torch.
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    state = read_checkpoint(tmp_path / "net.safetensors")
    assert network in [found.network for found in fitting_networks(state, networks_of(network.source))]
    found = recognise(state, "File", network.source, network.name)
    space = network.load_space()
    arch = network.find_arch(space)
    supernet = Supernet(space, 1000)
    assert not load_in_order(supernet, arch, found.tensors)
    supernet.double()
    theirs.double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        supernet.train(training)
        with torch.no_grad():
            wanted = theirs.train(training)(x)
            for ours in {str(one.width): one for one in (arch, largest(space))}.values():
                assert relative(extract(supernet, ours)(x), wanted) < 1e-9, (training, ours)


def test_definition_order_is_found_again() -> None:
    """In files that are sorted by name, as safetensors files are, and in any other order."""
    builders = {
        network.name: timm.create_model for network in packaged_networks() if network.source == "timm"
    }
    builders |= dict.fromkeys(("mobilenetv2_050", "resnet18", "regnety_002"), timm.create_model)
    for name in ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet1_0", "resnet34"):
        builders[name] = torchvision.models.get_model
    for name, build in builders.items():
        with torch.device("meta"):
            names = list(build(name).state_dict())
        mixed = random.Random(0).sample(names, len(names))
        assert definition_order(mixed) == names, name
        assert definition_order(sorted(names)) == names, name
