"""A subnet as a backbone: one output for each stride, equal to torch; what makes no sense is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import yaml
from supernets import BACKBONE
from torch import Tensor

from engine.command.cli import parse
from engine.errors import UserError
from engine.run import digest
from export import features
from export.manifest import read_manifest
from export.onnx import Export
from ofa.space.published import find_arch
from ofa.subnet import Subnet
from ofa.trained import TrainedSupernet


@pytest.fixture(scope="module")
def run(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 16 x 16 images, of which 16 are for validation."""
    folder = tmp_path_factory.mktemp("backbone")
    (folder / "space.yaml").write_text(yaml.safe_dump(BACKBONE))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (80, 16, 16, 3), np.uint8), np.arange(80) % 4
    np.savez(folder / "x.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    words = ["--space", str(folder / "space.yaml"), "--epochs", "1", "--batch-size", "16"]
    assert train(folder / "run", *words, "--data.name", "npz", "--data.path", str(folder / "x.npz")) == 0
    return folder / "run"


def export(run: Path, *words: str) -> int:
    return parse(
        Export, ["--run", str(run), "--arch", "largest", "--features", "--device", "cpu", *words]
    ).execute()


def in_torch(run: Path) -> tuple[dict[int, Tensor], Tensor]:
    """The maps of all validation images, and the images."""
    trained = TrainedSupernet(run, torch.device("cpu"))
    x = torch.cat([x for x, _ in trained.data.batches("val", 64)]).contiguous()
    with torch.no_grad():
        return trained.subnet(find_arch(trained.space, "largest")).features(x), x


@pytest.mark.slow
def test_the_file_gives_the_maps_that_torch_gives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, "--target", "cpu,nnapi") == 0
    assert "4: 16, 8: 24" in capsys.readouterr().out
    wanted, x = in_torch(run)
    folder = run / "export" / "features"
    names = {"largest.onnx", "largest.json", "largest.nnapi.onnx", "largest.nnapi.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name, batch in (("largest.onnx", "batch"), ("largest.nnapi.onnx", 1)):
        session = ort.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        outputs = {output.name: output.shape for output in session.get_outputs()}
        assert outputs == {"stride4": [batch, 16, 4, 4], "stride8": [batch, 24, 2, 2]}
        parts = [x] if batch == "batch" else list(x[:3].split(1))
        for i, part in enumerate(parts):
            got = session.run(["stride4", "stride8"], {"image": part.numpy()})
            for stride, found in zip((4, 8), got, strict=True):
                same = wanted[stride] if batch == "batch" else wanted[stride][i : i + 1]
                np.testing.assert_allclose(found, same.numpy(), atol=1e-4 * float(same.abs().max()))
        manifest = read_manifest(folder / name)
        assert manifest.sha256 == digest(folder / name) and manifest.classes is None
        assert manifest.features is not None
        assert [(f.name, f.stride, f.channels) for f in manifest.features] == [
            ("stride4", 4, 16),
            ("stride8", 8, 24),
        ]
        inside = session.get_modelmeta().custom_metadata_map
        assert json.loads(inside["features"]) == [f.model_dump(mode="json") for f in manifest.features]
        assert json.loads(inside["preprocessing"])["mean"] == manifest.preprocessing["mean"]  # type: ignore[index]
        assert max(manifest.parity["relative_error"].values()) < 1e-4 and manifest.parity["images"] == 16
        assert not any("Gemm" in node.op_type for node in onnx.load(folder / name).graph.node), (
            "no classifier"
        )


@pytest.mark.slow
def test_pixels_go_in_where_normalisation_is_in_the_graph(run: Path) -> None:
    assert export(run, "--bake", "normalize", "--layout", "NHWC", "--images", "5") == 0
    path = run / "export" / "features" / "largest.onnx"
    assert read_manifest(path).input.layout == "NHWC" and read_manifest(path).parity["images"] == 5
    wanted, x = in_torch(run)
    data = TrainedSupernet(run, torch.device("cpu")).data
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    pixels = ((x * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["stride8"], {"image": pixels.numpy()})
    np.testing.assert_allclose(found, wanted[8].numpy(), atol=1e-4 * float(wanted[8].abs().max()))


@pytest.mark.slow
def test_the_input_may_be_larger(run: Path) -> None:
    assert export(run, "--size", "40", "--images", "5") == 0
    path = run / "export" / "features" / "largest.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 40, 40)
    (found,) = session.run(["stride8"], {"image": x.numpy()})
    trained = TrainedSupernet(run, torch.device("cpu"))
    with torch.no_grad():
        wanted = trained.subnet(find_arch(trained.space, "largest")).features(x)[8]
    assert found.shape == (2, 24, 5, 5)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))
    assert read_manifest(path).preprocessing["resize"] == [40, 40]  # type: ignore[index]


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export(run) == 0
    original = Subnet.features

    # After the graph was written, torch gives something else in the second map.
    def changed(self: Subnet, x: Tensor) -> dict[int, Tensor]:
        return {stride: found * (1.001 if stride == 8 else 1) for stride, found in original(self, x).items()}

    def traced(*words: object) -> onnx.ModelProto:
        model = write(*words)  # type: ignore[arg-type]
        monkeypatch.setattr(Subnet, "features", changed)
        return model

    write = features.traced_graph
    monkeypatch.setattr(features, "traced_graph", traced)
    assert export(run) == 1
    folder = run / "export" / "features"
    assert not (folder / "largest.onnx").exists() and not (folder / "largest.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "cpu-int8"], "target cpu-int8 is int8 as onnx"),
        (["--target", "cpu,fp16"], "target fp16 is float16 as onnx"),
        (["--target", "mobile"], "target mobile is float32 as ort"),
        (["--size", "20"], "side of 20 pixels is no multiple of its largest stride 8"),
        (["--no-features", "--size", "24"], "--size is of --features"),
        (["--bake", "normalize", "--softmax"], "--softmax is of logits, which --features leaves out"),
    ],
)
def test_what_makes_no_sense_of_maps_is_one_sentence(words: list[str], said: str, run: Path) -> None:
    with pytest.raises(UserError, match=said):
        export(run, *words)


def test_a_network_without_such_strides_is_refused(trained_run: Path) -> None:
    with pytest.raises(UserError, match="has no map at a stride of 4, 8, 16, 32; leave out --features"):
        export(trained_run)


@pytest.mark.slow
def test_the_detector_of_the_documentation_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(run, "--images", "5") == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, names)
    assert all(float(loss.detach()) > 0 for loss in names["losses"].values())
    assert all(p.grad is not None for p in names["subnet"].stem.parameters())
    assert names["scores"].shape == (1, 1, 2, 2)
