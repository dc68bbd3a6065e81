"""Whatever is wrong with a network or a file is said in a sentence before anybody relies on it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import randomised
from torch import Tensor, nn

from engine.compute.macs import count_parameters
from engine.errors import UserError
from engine.onnx_file import to_proto, write_onnx
from export.formats.format import Array
from export.formats.onnx import open_onnxruntime, run_session
from export.graph.checks import check_model
from export.manifest import exported_files, manifest_path, read_manifest
from export.verify import Parity, Reference, compare_file, reference_outputs
from ofa.cost import cost_of
from ofa.space.arch import smallest
from ofa.space.space import load_space
from ofa.subnet import Subnet
from ofa.supernet import Supernet


def reference_of(net: nn.Module, x: Tensor) -> Reference:
    def batches() -> Iterator[tuple[Array, Array | None]]:
        yield x[:4].numpy(), None
        yield x[4:].numpy(), None

    return reference_outputs(net, batches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "small32", "small128"])
def test_equal_on_architectures_of_every_kind(name: str, tmp_path: Path) -> None:
    net = randomised(load_space(name), 1)
    x = torch.randn(9, 3, net.arch.resolution, net.arch.resolution)
    write_onnx(net, x[:2], tmp_path / "x.onnx", {})
    parity = compare_file(reference_of(net, x), tmp_path / "x.onnx")
    assert parity.complaint("float32") == ""
    assert (parity.images, parity.accuracy) == (9, 1.0)
    assert parity.snr_db > 100
    assert check_model(onnx.load(tmp_path / "x.onnx"), count_parameters(net)) == ""


@pytest.mark.slow
def test_a_wrong_file_fails_the_comparison(tmp_path: Path) -> None:
    net, other = randomised(load_space("digits"), 1), randomised(load_space("digits"), 1)
    nn.init.normal_(other.classifier.weight)
    x = torch.randn(6, 3, net.arch.resolution, net.arch.resolution)
    write_onnx(other, x[:2], tmp_path / "x.onnx", {})
    parity = compare_file(reference_of(net, x), tmp_path / "x.onnx")
    assert "differs from torch" in parity.complaint("float32")
    nn.init.constant_(other.classifier.bias, float("nan"))
    write_onnx(other, x[:2], tmp_path / "x.onnx", {})
    assert "NaN" in compare_file(reference_of(net, x), tmp_path / "x.onnx").complaint("int8")
    assert Parity(float("nan"), 1.0, 1.0, 1.0, 4).complaint("float32")
    assert Parity(1e-3, 30.0, 1.0, 1.0, 4).complaint("float16")


@pytest.mark.slow
def test_two_classes_that_are_a_tie_in_torch_may_change_places(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    net[1].weight.data[1] = net[1].weight.data[0]
    net[1].bias.data[:] = torch.tensor([0.0, 1e-9])
    x = torch.randn(6, 3, 2, 2)
    reference = reference_of(net, x)
    net[1].bias.data[:] = torch.tensor([1e-6, 0.0])
    write_onnx(net, x[:2], tmp_path / "x.onnx", {})
    assert compare_file(reference, tmp_path / "x.onnx").same_top1 == 1.0


@pytest.mark.slow
def test_a_slice_of_shared_weights_does_not_write_the_supernet(tmp_path: Path) -> None:
    """An exported view once brought its whole storage; and a supernet traced as it is brings all its
    weights."""
    space = load_space("digits")
    torch.manual_seed(0)
    supernet, arch = Supernet(space, 10, 3).eval(), smallest(space)
    whole = count_parameters(supernet)
    own = cost_of(space, arch, 10, 3)[1]
    x = torch.zeros(2, 3, arch.resolution, arch.resolution)
    net = Subnet(space, arch, 10, 3).eval()
    net.load_state_dict(
        net.state_dict() | {k: v.detach() for k, v in supernet.slices(arch).items()}, assign=True
    )
    assert net.classifier.weight.untyped_storage().nbytes() > 4 * net.classifier.weight.numel(), (
        "a view, else this tests nothing"
    )
    write_onnx(net, x, tmp_path / "x.onnx", {})
    assert (tmp_path / "x.onnx").stat().st_size < 4 * own + 40_000 < 4 * whole
    assert check_model(onnx.load(tmp_path / "x.onnx"), own) == ""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(3, 4000)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x.mean((2, 3)))[:, :10]

    assert "numbers, but the network has only" in check_model(to_proto(Whole().eval(), x), 40)


def test_what_must_not_be_exported_is_caught_before() -> None:
    x = torch.randn(6, 3, 8, 8)

    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()

    training, half, broken, inf, flat = net(), net(), net(), net(), nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    half[1].train()
    broken[0].weight.data[0] = float("nan")
    inf[4].weight.data[:] = 3e38
    for module, images, sentence in (
        (training.train(), x, "Sequential is in training mode; call .eval"),
        (half, x, "'1' of it is in training mode"),
        (broken, x, "weight '0.weight' holds NaN"),
        (inf, x * 1e3, "itself gives NaN or infinity"),
        (net(), torch.randn(6, 1, 8, 8), r"does not take images of shape \(4, 1, 8, 8\)"),
        (net(), torch.randn(6, 3, 2, 2), r"does not take images of shape \(4, 3, 2, 2\)"),
        (flat, x, "not logits"),
    ):
        with pytest.raises(UserError, match=sentence):
            reference_of(module, images)


def test_an_invalid_graph_is_refused() -> None:
    model = to_proto(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), torch.zeros(2, 3, 2, 2))
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].op_type = "Flat"
    assert "not valid ONNX" in check_model(broken, 100)


def test_damaged_files_are_sentences(exported: Path, tmp_path: Path) -> None:
    for name in ("largest.onnx", "largest.mobile.ort"):
        path = tmp_path / name
        beside = manifest_path(path)
        shutil.copy(exported / beside.name, beside)
        content = (exported / name).read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="truncated or changed"):
            read_manifest(path)
        with pytest.raises(UserError, match="truncated or damaged"):
            open_onnxruntime(path)
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        with pytest.raises(UserError, match="not, byte for byte, the file that was verified"):
            read_manifest(path)
        path.write_bytes(content)
        assert read_manifest(path).file == name
        assert exported_files(tmp_path)[0] == path
        path.unlink()
        beside.unlink()
    with pytest.raises(UserError, match="There is no file"):
        open_onnxruntime(tmp_path / "largest.onnx")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="has no manifest"):
        read_manifest(tmp_path / "x.onnx")
    (tmp_path / "x.json").write_text(json.dumps({"file": "x.onnx"}))
    with pytest.raises(UserError, match="is missing"):
        read_manifest(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="holds no exported file"):
        exported_files(tmp_path / "nowhere")


def test_wrong_images_are_a_sentence_and_one_at_a_time_suits_every_file(exported: Path) -> None:
    free, fixed = (open_onnxruntime(exported / name) for name in ("largest.onnx", "largest.nnapi.onnx"))
    shape = fixed.get_inputs()[0].shape
    x = np.random.default_rng(0).standard_normal((3, *shape[1:]), dtype=np.float32)
    np.testing.assert_allclose(run_session(free, x), run_session(fixed, x), rtol=1e-3, atol=1e-4)
    for wrong in (x[:, :, 1:], x.astype(np.uint8), x[0]):
        with pytest.raises(UserError, match="The file takes"):
            run_session(free, wrong)
