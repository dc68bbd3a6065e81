"""Published checkpoint formats: rebuilt from their naming rules, loaded, and compared by their logits.

The logits are those of the reference code. The weights are pseudo-random functions of the published names
(seed: crc32 of the name), on which the reference code's own extracted subnets were run in float32. A wrong
name, slice, epsilon or activation changes the logits by far more than rounding.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.command.cli import parse
from engine.errors import UserError
from export.onnx import Export
from ofa.convert import Convert
from ofa.evaluate import Evaluate
from ofa.space.arch import Arch, smallest
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.trained import load_network as load_run
from ofa.weights.reading import read_checkpoint
from ofa.weights.supernets import load_supernet, simplified

Shapes = dict[str, tuple[int, ...]]
RESIDUAL = {"attentive_nas": 0.35, "ofa_mbv3": 0.75, "ofa_proxyless": 0.8, "ofa_resnet50": 0.4}
SIZE = {"attentive_nas": 224, "ofa_mbv3": 160, "ofa_proxyless": 160, "ofa_resnet50": 160}

RANDOM = {
    "attentive_nas": Arch(
        resolution=224,
        width=(16, 24, 32, 32, 64, 120, 208, 216, 1792),
        depth=(2, 5, 6, 6, 8, 4, 1),
        kernel=(3, 5, 3, 3, 3, 3, 5),
        expand=(1, 5, 5, 6, 6, 6, 6),
    ),
    "ofa_mbv3": Arch(
        resolution=160,
        width=(16, 16, 24, 40, 80, 112, 160, 1280),
        depth=(1, 2, 2, 2, 2, 3),
        kernel=(3, 7, 5, 7, 5, 7, 7, 7, 7, 3, 5, 3, 7, 3, 3, 3, 5, 5, 3, 5, 7),
        expand=(1, 3, 6, 3, 3, 6, 3, 4, 4, 3, 4, 3, 3, 3, 6, 6, 4, 3, 3, 3, 3),
    ),
    "ofa_proxyless": Arch(
        resolution=160,
        width=(40, 24, 32, 56, 104, 128, 248, 416, 1664),
        depth=(1, 2, 2, 3, 3, 2, 1),
        kernel=(3, 7, 5, 7, 5, 7, 7, 7, 7, 3, 5, 3, 7, 3, 3, 3, 5, 5, 3, 5, 7, 3),
        expand=(1, 6, 3, 3, 6, 3, 4, 4, 3, 4, 3, 3, 3, 6, 6, 4, 3, 3, 3, 3, 3, 3),
    ),
    "ofa_resnet50": Arch(
        resolution=160,
        width=(64, 168, 408, 816, 1328),
        depth=(4, 2, 6, 2),
        kernel=(3,) * 18,
        expand=(
            0.35,
            0.25,
            0.35,
            0.25,
            0.35,
            0.35,
            0.35,
            0.35,
            0.2,
            0.25,
            0.2,
            0.35,
            0.2,
            0.2,
            0.2,
            0.25,
            0.25,
            0.2,
        ),
        stem=(24, 0),
    ),
}

# First three classes of two images: in eval mode, and in train mode (batch statistics, no dropout).
LOGITS = {
    ("attentive_nas", "smallest"): (
        [[5.95802, 0.254083, -0.707565], [5.823794, 0.282837, -0.714547]],
        [[0.510193, -0.122299, 0.156377], [0.394523, 0.006087, 0.171078]],
    ),
    ("attentive_nas", "largest"): (
        [[167.031128, 16.301226, -86.181641], [176.228485, 19.748034, -93.328949]],
        [[0.431038, -0.1629, 0.234338], [0.560662, -0.076402, 0.106324]],
    ),
    ("attentive_nas", "random"): (
        [[7.26369, -4.374427, -6.372743], [7.419936, -4.572708, -6.437596]],
        [[0.385462, -0.036743, 0.297056], [0.51077, -0.087372, 0.038857]],
    ),
    ("ofa_mbv3", "largest"): (
        [[5.686188, -292.356323, 328.156921], [-14.659592, -171.602539, 287.885315]],
        [[-0.122978, -0.251024, -0.103293], [-0.050283, -0.201912, 0.155759]],
    ),
    ("ofa_mbv3", "smallest"): (
        [[-0.212243, 0.035175, 0.051836], [-0.212232, 0.035121, 0.051759]],
        [[-0.104931, -0.224298, 0.031008], [-0.053789, -0.225509, 0.014698]],
    ),
    ("ofa_mbv3", "random"): (
        [[-0.086216, -0.080571, 0.163831], [-0.083444, -0.083052, 0.163519]],
        [[0.03863, -0.321387, 0.074387], [-0.215654, -0.124666, -0.026917]],
    ),
    ("ofa_proxyless", "random"): (
        [[0.544737, 0.020591, 0.142688], [0.505998, -0.009981, 0.180334]],
        [[0.163113, 0.357664, 0.452552], [0.313256, 0.577278, 0.513164]],
    ),
    ("ofa_proxyless", "smallest"): (
        [[0.206256, -0.198374, 0.184585], [0.208625, -0.197713, 0.185878]],
        [[0.156791, 0.517514, 0.682717], [0.389227, 0.484625, 0.375762]],
    ),
    ("ofa_resnet50", "largest"): (
        [[100.179916, -34.098598, -54.144596], [99.697166, -33.978985, -53.299343]],
        [[1.503345, -0.55135, -0.814772], [1.472344, -0.417514, -0.907078]],
    ),
    ("ofa_resnet50", "random"): (
        [[2.079467, -3.214962, -1.731591], [2.103877, -3.203116, -1.706583]],
        [[0.507194, -0.49877, -0.335758], [0.939341, -0.441189, -0.257455]],
    ),
}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def published(space: Space) -> Shapes:
    """Names and shapes of the checkpoint that the authors of this space published."""
    if space.name == "ofa_resnet50":
        return dict(resnet(space))
    return dict(attentive(space) if space.name == "attentive_nas" else mobile(space))


def attentive(space: Space) -> Iterator[tuple[str, tuple[int, ...]]]:
    def layer(name: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.conv.conv.weight", weight
        yield from norm(f"{name}.bn.bn", weight[0]).items()
        for other in ("0", "1"):  # statistics of the smallest and the largest subnet
            tracked = norm(f"{name}.bn.bn_tracking.{other}", weight[0])
            yield from ((n, s) for n, s in tracked.items() if not n.endswith(("weight", "bias")))

    yield from layer("first_conv", (24, 3, 3, 3))
    number, inp = 0, 24
    for stage in space.stages:
        for _ in range(stage.depth[-1]):
            name, out, hidden = (
                f"blocks.{number}.mobile_inverted_conv",
                stage.width[-1],
                int(inp * stage.expand[-1]),
            )
            if stage.expand != (1,):
                yield from layer(f"{name}.inverted_bottleneck", (hidden, inp, 1, 1))
            yield from layer(f"{name}.depth_conv", (hidden, 1, 5, 5))
            yield from excite(name, hidden) if stage.se else ()
            yield from layer(f"{name}.point_linear", (out, hidden, 1, 1))
            yield f"blocks.{number}.shortcut.conv.conv.weight", (out, inp, 1, 1)
            number, inp = number + 1, out
    yield from layer("last_conv.final_expand_layer", (1344, 224, 1, 1))
    yield "last_conv.feature_mix_layer.conv.conv.weight", (1984, 1344, 1, 1)
    yield from (("classifier.linear.linear.weight", (1000, 1984)), ("classifier.linear.linear.bias", (1000,)))


def excite(name: str, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    squeeze = {144: 40, 240: 64, 432: 112, 768: 192, 816: 208, 1296: 328, 1344: 336}.get(hidden, hidden // 4)
    for layer, shape in (("reduce", (squeeze, hidden)), ("expand", (hidden, squeeze))):
        yield f"{name}.depth_conv.se.fc.{layer}.weight", (*shape, 1, 1)
        yield f"{name}.depth_conv.se.fc.{layer}.bias", shape[:1]


def mobile(space: Space) -> Iterator[tuple[str, tuple[int, ...]]]:
    def plain(name: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.conv.weight", weight
        yield from norm(f"{name}.bn", weight[0]).items()

    def elastic(name: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.conv.conv.weight", weight
        yield from norm(f"{name}.bn.bn", weight[0]).items()

    inp, (first, *stages) = space.stem.width[0], space.stages
    yield from plain("first_conv", (inp, 3, 3, 3))
    yield from plain("blocks.0.conv.depth_conv", (inp, 1, 3, 3))
    yield from plain("blocks.0.conv.point_linear", (first.width[0], inp, 1, 1))
    number, inp = 1, first.width[0]
    for stage in stages:
        for _ in range(stage.depth[-1]):
            name, hidden = f"blocks.{number}.conv", inp * 6
            yield from elastic(f"{name}.inverted_bottleneck", (hidden, inp, 1, 1))
            yield from elastic(f"{name}.depth_conv", (hidden, 1, 7, 7))
            yield from (
                (f"{name}.depth_conv.conv.5to3_matrix", (9, 9)),
                (f"{name}.depth_conv.conv.7to5_matrix", (25, 25)),
            )
            yield from excite(name, hidden) if stage.se else ()
            yield from elastic(f"{name}.point_linear", (stage.width[0], hidden, 1, 1))
            number, inp = number + 1, stage.width[0]
    assert space.head is not None
    width = space.head.width[0]
    if space.head.expand:
        yield from plain("final_expand_layer", (6 * inp, inp, 1, 1))
        yield "feature_mix_layer.conv.weight", (width, 6 * inp, 1, 1)
    else:
        yield from plain("feature_mix_layer", (width, inp, 1, 1))
    yield from (("classifier.linear.weight", (1000, width)), ("classifier.linear.bias", (1000,)))


def resnet(space: Space) -> Iterator[tuple[str, tuple[int, ...]]]:
    def layer(name: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.conv.conv.weight", weight
        yield from norm(f"{name}.bn.bn", weight[0]).items()

    yield from layer("input_stem.0", (32, 3, 3, 3))
    yield from layer("input_stem.1.conv", (32, 32, 3, 3))
    yield from layer("input_stem.2", (64, 32, 3, 3))
    number, inp = 0, 64
    for count, out, hidden in ((4, 256, 88), (4, 512, 176), (6, 1024, 360), (4, 2048, 720)):
        for i in range(count):
            yield from layer(f"blocks.{number}.conv1", (hidden, inp, 1, 1))
            yield from layer(f"blocks.{number}.conv2", (hidden, hidden, 3, 3))
            yield from layer(f"blocks.{number}.conv3", (out, hidden, 1, 1))
            yield from layer(f"blocks.{number}.downsample", (out, inp, 1, 1)) if i == 0 else ()
            number, inp = number + 1, out
    yield from (("classifier.linear.linear.weight", (1000, 2048)), ("classifier.linear.linear.bias", (1000,)))


def fill(name: str, shape: tuple[int, ...], residual: float) -> torch.Tensor:
    """The reference's pseudo-random tensor of a name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        drawn = 0.5 + torch.rand(shape, generator=generator)
        return (
            drawn * residual
            if name.endswith("weight") and ("point_linear" in name or "conv3" in name)
            else drawn
        )
    drawn = torch.randn(shape, generator=generator)
    if name.endswith("_matrix"):
        return torch.eye(shape[0]) + 0.1 * drawn
    if len(shape) == 4:
        return drawn * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
    return drawn / shape[1] ** 0.5 if len(shape) == 2 else 0.1 * drawn


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, dict[str, torch.Tensor]]:
    return {
        kind: {n: fill(n, s, RESIDUAL[kind]) for n, s in published(load_space(kind)).items()}
        for kind in RESIDUAL
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESIDUAL)
def test_logits_equal_the_reference(kind: str, checkpoints: dict[str, dict[str, torch.Tensor]]) -> None:
    supernet = Supernet(load_space(kind), 1000)
    with torch.no_grad():
        load_supernet(supernet, checkpoints[kind], Path("file"))
    x = torch.randn((2, 3, SIZE[kind], SIZE[kind]), generator=torch.Generator().manual_seed(1234))
    for (wanted_kind, name), expected in LOGITS.items():
        if wanted_kind == kind:
            arch = RANDOM[kind] if name == "random" else find_arch(supernet.space, name)
            arch = arch if kind == "attentive_nas" else arch.model_copy(update={"resolution": SIZE[kind]})
            for training, logits in zip((False, True), expected, strict=True):
                with torch.no_grad():
                    found = supernet.train(training)(x, arch)[:, :3]
                reference = torch.tensor(logits)
                relative = float((found - reference).abs().max() / reference.abs().max())
                assert relative < (2e-4 if name == "largest" and not training else 5e-6), (
                    name,
                    training,
                    relative,
                )


@pytest.mark.parametrize(
    ("kind", "count"),
    [("attentive_nas", 1468), ("ofa_mbv3", 475), ("ofa_proxyless", 446), ("ofa_resnet50", 368)],
)
def test_the_rebuilt_listing_has_as_many_tensors_as_the_published_one(kind: str, count: int) -> None:
    assert len(published(load_space(kind))) == count


def test_names_of_older_and_wrapped_checkpoints_are_the_same() -> None:
    for name in (
        "module.blocks.3.mobile_inverted_conv.depth_conv.conv.conv.weight",
        "blocks.3.conv.depth_conv.conv.weight",
    ):
        assert simplified(name) == "blocks.3.conv.depth_conv.conv.weight"


def test_what_does_not_fit_is_named(checkpoints: dict[str, dict[str, torch.Tensor]]) -> None:
    supernet, good = Supernet(load_space("ofa_mbv3"), 1000), checkpoints["ofa_mbv3"]
    gone = "blocks.3.conv.depth_conv.conv.7to5_matrix"
    for tensors, said in (
        ({n: t for n, t in good.items() if n != gone}, f"lacks 1 tensors such as {gone}"),
        (good | {"novel.weight": torch.zeros(2)}, "has beside it 1 tensors such as novel.weight"),
        (
            good | {"first_conv.conv.weight": torch.zeros(8, 3, 3, 3)},
            r"first_conv.conv.weight is \(8, 3, 3, 3\) where \(16, 3, 3, 3\)",
        ),
        (checkpoints["attentive_nas"], "lacks .* and has beside it"),
    ):
        with pytest.raises(UserError, match=said), torch.no_grad():
            load_supernet(supernet, tensors, Path("file"))


def test_files_that_are_no_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    torch.save({"a.weight": torch.tensor([1.0, math.nan])}, tmp_path / "nan.pth")
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "code.pth")
    save_file({}, tmp_path / "empty.safetensors")
    save_file({"module.a.weight": torch.tensor([1.0, math.nan])}, tmp_path / "nan.safetensors")
    for name, said in (
        ("text.pth", "cannot be loaded as weights"),
        ("code.pth", "holds more than tensors, and loading that could run code"),
        ("nan.pth", "is damaged: a.weight is not finite"),
        ("empty.pth", "holds no named tensors"),
        ("nan.safetensors", "hold NaN or infinity, first in module.a.weight"),
        ("empty.safetensors", "holds no named tensors"),
        ("none.pth", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=said):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kind", ["ofa_mbv3", "ofa_mbv3_w1.2"])
def test_files_as_they_are_found(kind: str, tmp_path: Path) -> None:
    """Half precision, older names, an optimiser beside the weights, other prefixes, an average instead."""
    space = load_space(kind)
    good = {
        name: fill(name, shape, 0.75).half()
        for name, shape in dict(mobile(space)).items()
        if not name.endswith("tracked")
    }
    older = {
        f"module.module.{n}".replace(".conv.", ".mobile_inverted_conv.", 1).replace(".bn.bn.", ".bn."): t
        for n, t in good.items()
    }
    torch.save(
        {"epoch": 3, "optimizer": {"lr": torch.tensor(0.1)}, "model_ema": {"state_dict": older}},
        tmp_path / "file.pth",
    )
    nets = [Supernet(space, 1000).eval() for _ in range(2)]
    x, arch = torch.randn(2, 3, 128, 128), smallest(space)
    with torch.no_grad():
        assert not load_supernet(nets[0], good, Path("file"))
        assert not load_supernet(nets[1], read_checkpoint(tmp_path / "file.pth"), tmp_path / "file.pth")
        assert torch.equal(nets[0](x, arch), nets[1](x, arch))
        assert load_supernet(Supernet(space, 7), good, Path("file")), (
            "another number of classes: the classifier stays"
        )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of tiny images."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (48, 8, 8, 3), np.uint8), np.arange(48) % 12
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    return path


@pytest.mark.slow
def test_a_converted_run_is_evaluated_and_exported(
    checkpoints: dict[str, dict[str, torch.Tensor]],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run = tmp_path / "published.pth", tmp_path / "run"
    tensors = {
        name: t[:12] if name.startswith("classifier.") else t for name, t in checkpoints["ofa_mbv3"].items()
    }
    torch.save({"state_dict": {f"module.{name}": t for name, t in tensors.items()}}, file)
    words = [str(file), "--from", "ofa_mbv3", "--out", str(run), "--calibration-images", "64"]
    assert parse(Convert, [*words, "--data.name", "npz", "--data.path", str(images)]).execute() == 0
    assert "next: python -m predictors.collect --run" in capsys.readouterr().out
    _, supernet = load_run(run)
    assert torch.equal(supernet.state_dict()["classifier.weight"], tensors["classifier.linear.weight"])
    assert parse(Evaluate, ["--run", str(run), "--arch", "smallest", "--device", "cpu"]).execute() == 0
    assert parse(Export, ["--run", str(run), "--arch", "smallest", "--device", "cpu"]).execute() == 0
    assert list((run / "export").glob("*.onnx"))
