"""`export.to_onnx` on what networks of others do in their forward, each in a small network of a few layers.

`benchmarks/any_classifier.py` does it with the networks themselves.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from torch import Tensor, nn

import export
from engine.errors import UserError

CLASSES = 5


class Stem(nn.Module):
    """A convolution to 8 channels of 4 x 4, and a linear layer for the classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, CLASSES)


def norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A norm with statistics as after training."""
    assert layer.running_mean is not None and layer.running_var is not None
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return layer


class PositionTable(Stem):
    """Adds a table of positions that its forward computes, much larger than its weights."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.arange(90 * 128, dtype=torch.float32).reshape(90, 8, 4, 4).sin()
        return self.head((self.stem(x) + table.mean(0)).mean((2, 3)))


class NormOfVectors(Stem):
    """BatchNorm1d of (N, C) behind what is no linear layer, as in LeViT, EfficientViT and RepViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = norm(nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x).mean((2, 3))).relu())


class NormOfSequences(Stem):
    """BatchNorm1d of (N, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = norm(nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x).flatten(2)).amax(2))


class NormAlone(Stem):
    """A branch that is only a norm, as in RepVGG and MobileOne."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = norm(nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.norm(x) + self.conv(x)).mean((2, 3)))


class LayerNorms(Stem):
    """Norms over channels, GELU and a scale for each channel, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.ones(8))
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = nn.functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1))))
        x = x + self.narrow(y).permute(0, 3, 1, 2) * self.scale[:, None, None]
        return self.head(self.norm(x.mean((2, 3))))


class ResponseNorm(Stem):
    """Global response normalisation, as in ConvNeXt V2."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        power = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.head((x + x * power / (power.mean(1, keepdim=True) + 1e-6)).mean((2, 3)))


class Attention(Stem):
    """A class token and attention; the forward asks for the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.qkv = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1)
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0, 0])


class CountsImages(Stem):
    """Makes a Python number of the number of images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).reshape(int(x.shape[0]), 8, 16).mean(2))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def check_every_batch(path: Path, network: nn.Module, images: Tensor) -> None:
    """Compare the file with torch on 1, 7 and 128 images at once."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 7, 128):
        (found,) = session.run(None, {"image": images[:count].numpy()})
        with torch.no_grad():
            wanted = network(images[:count]).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


NETWORKS = [PositionTable, NormOfVectors, NormOfSequences, NormAlone, LayerNorms, ResponseNorm, Attention]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_takes_any_number_of_images(kind: type[Stem], images: Tensor, tmp_path: Path) -> None:
    network = kind().eval()
    export.to_onnx(network, tmp_path / "x.onnx", images=images[:8])
    check_every_batch(tmp_path / "x.onnx", network, images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NormAlone, LayerNorms, ResponseNorm, Attention])
def test_the_file_of_8_bits_is_near(kind: type[Stem], images: Tensor, tmp_path: Path) -> None:
    network = kind().eval()
    manifest = export.to_onnx(network, tmp_path / "x.onnx", "cpu-int8", images=images, max_drop=100)
    assert manifest.parity["snr_db"] > 20


@pytest.mark.slow
def test_a_residual_network_keeps_its_biases(images: Tensor, tmp_path: Path) -> None:
    """An exporter that loses the biases of folded norms gives plausible numbers that are wrong."""
    torch.manual_seed(0)
    network = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES
    )
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(norm(part).bias)
    network.eval()
    export.to_onnx(network, tmp_path / "x.onnx", images=images[:8])
    check_every_batch(tmp_path / "x.onnx", network, images)
    for node in onnx.load(tmp_path / "x.onnx").graph.node:
        assert node.op_type != "Conv" or len(node.input) == 3, "every convolution has taken a norm's shift"


@pytest.mark.slow
def test_a_fixed_number_of_images_is_a_sentence(images: Tensor, tmp_path: Path) -> None:
    network = CountsImages().eval()
    with pytest.raises(UserError, match="uses the number of images as a Python number") as error:
        export.to_onnx(network, tmp_path / "x.onnx", images=images[:8])
    assert "batch: one" in str(error.value) and list(tmp_path.iterdir()) == []
    export.to_onnx(network, tmp_path / "x.onnx", "web", images=images[:8])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_16_bits_is_computed_in_float32(
    dtype: torch.dtype, images: Tensor, tmp_path: Path
) -> None:
    network = NormOfVectors().to(dtype).eval()
    export.to_onnx(network, tmp_path / "x.onnx", images=images[:8])
    assert next(network.parameters()).dtype == dtype, "the module is not changed"
    check_every_batch(tmp_path / "x.onnx", NormOfVectors().to(dtype).float().eval(), images)
    parity = export.verify_file(tmp_path / "x.onnx", network, images[:8])
    assert parity.relative_error < 1e-4


def test_a_folder_that_takes_no_files_is_a_sentence(images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"x\.onnx' cannot be written \(.+\); choose another folder"):
        export.to_onnx(NormAlone().eval(), tmp_path / "file" / "x.onnx", images=images[:8])


@pytest.mark.slow
def test_two_formats_beside_each_other_have_a_manifest_each(images: Tensor, tmp_path: Path) -> None:
    network = NormOfVectors().eval()
    export.to_onnx(network, tmp_path / "x.onnx", images=images[:8])
    export.to_onnx(network, tmp_path / "x.ort", "mobile", images=images[:8])
    assert export.read_manifest(tmp_path / "x.onnx").file == "x.onnx"
    assert export.read_manifest(tmp_path / "x.ort").file == "x.ort"
