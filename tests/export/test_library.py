"""`export.to_onnx` on networks that are not ours: torchvision's and timm's."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import torchvision
from networks import shaken
from torch import nn

import export
from engine.errors import UserError
from export.formats.onnx import open_onnxruntime
from export.manifest import read_manifest


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return shaken(torchvision.models.mobilenet_v3_small(num_classes=7))


@pytest.mark.slow
def test_torchvision_for_a_phone(small: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    manifest = export.to_onnx(small, tmp_path / "small.onnx", "nnapi", images=images, classes=list("abcdefg"))
    assert manifest.parity["relative_error"] < 1e-4
    session = ort.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"image": images[:1].numpy()})[0],
            small(images[:1]).numpy(),
            rtol=1e-3,
            atol=1e-5,
        )
    kinds = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert not kinds & {"HardSwish", "HardSigmoid", "BatchNormalization"}
    assert read_manifest(tmp_path / "small.onnx").classes == tuple("abcdefg")
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items()), (
        "the module is not changed"
    )


@pytest.mark.slow
def test_timm_in_8_bits_and_with_pixels_in(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = shaken(timm.create_model("mobilenetv3_small_050", num_classes=7))
    bake = export.Bake((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "NHWC", softmax=True)
    with pytest.warns(UserWarning, match="with 4 images to judge it"):
        manifest = export.to_onnx(
            net, tmp_path / "timm.onnx", "cpu-int8", images=images, bake=bake, max_drop=100
        )
    assert (manifest.precision, manifest.input.dtype) == ("int8", "uint8")
    assert manifest.output.name == "probabilities"
    assert manifest.bytes < 4 * manifest.params / 2
    pixels = bake.pixels(images).numpy()
    (got,) = open_onnxruntime(tmp_path / "timm.onnx").run(None, {"image": pixels})
    mean, std = np.array(bake.mean, np.float32), np.array(bake.std, np.float32)
    x = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = torch.softmax(net(x.contiguous()), 1).numpy()
    assert np.abs(got - wanted).max() < 0.1
    assert got.sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_size_comes_from_timm_or_an_example(small: nn.Module, tmp_path: Path) -> None:
    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pretrained_cfg = nn.Conv2d(1, 4, 3), {"input_size": (1, 20, 20)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3))

    assert export.to_onnx(Noted().eval(), tmp_path / "a.onnx").input.shape == ("batch", 1, 20, 20)
    assert export.to_onnx(
        Noted().eval(), tmp_path / "a.onnx", example=torch.zeros(1, 1, 9, 9)
    ).input.shape == ("batch", 1, 9, 9)


def test_mistakes_are_sentences_and_leave_no_file(
    small: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    path = tmp_path / "x.onnx"
    for call, sentence in (
        (lambda: export.to_onnx(small, path, "cpu-int8"), "give images to calibrate"),
        (lambda: export.to_onnx(small, path, "mobile"), r"writes \.ort files"),
        (lambda: export.to_onnx(small, path, "phone"), "There is no target 'phone'"),
        (
            lambda: export.to_onnx(small, path, images=images, classes=["one"]),
            "1 names of classes, but the network has 7 outputs",
        ),
        (lambda: export.to_onnx(small, path, images=images, labels=torch.zeros(3)), "8 images but 3 labels"),
        (lambda: export.to_onnx(Branch().eval(), path, images=images), "torch cannot export Branch"),
        (lambda: export.to_onnx(Branch(), path), "in training mode"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_is_verified_against_torch(images: torch.Tensor, tmp_path: Path) -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        convolution = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        return shaken(nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)))

    small = network(0)
    bake = export.Bake((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    export.to_onnx(small, tmp_path / "a.onnx", images=images)
    export.to_onnx(small, tmp_path / "pixels.onnx", images=images, bake=bake)
    labels = torch.zeros(len(images), dtype=torch.int64)
    with torch.no_grad():
        wanted = float((small(images).argmax(1) == 0).float().mean())
    for name, how in (("a.onnx", None), ("pixels.onnx", bake)):
        parity = export.verify_file(tmp_path / name, small, images, bake=how)
        assert parity.complaint("float32") == "" and parity.images == len(images)
    assert export.verify_file(tmp_path / "a.onnx", small, images, labels).accuracy == pytest.approx(wanted)
    other = network(1)
    assert "differs from torch" in export.verify_file(tmp_path / "a.onnx", other, images).complaint("float32")
    for path, sentence in (("b.onnx", "There is no file"), ("a.weights", "must end in")):
        with pytest.raises(UserError, match=sentence):
            export.verify_file(tmp_path / path, small, images)
    with pytest.raises(UserError, match="8 images but 3 labels"):
        export.verify_file(tmp_path / "a.onnx", small, images, labels[:3])
    with pytest.raises(UserError, match="The file takes"):
        export.verify_file(tmp_path / "pixels.onnx", small, images)


@pytest.mark.slow
def test_the_example_of_the_package_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.__doc__ is not None
    _, code = export.__doc__.split("for any torch classifier:\n")
    exec(textwrap.dedent(code), {})
    size, error, ms = capsys.readouterr().out.split()[-3:]
    assert int(size) == Path("net.onnx").stat().st_size and float(error) < 1e-4 and float(ms) > 0


def test_every_public_name_is_there() -> None:
    for name in export.__all__:
        assert getattr(export, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'export' has no attribute 'nothing'"):
        _ = export.nothing


def test_importing_the_package_imports_neither_torch_nor_onnx() -> None:
    code = "import sys, export; sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
