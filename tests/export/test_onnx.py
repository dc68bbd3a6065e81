"""An exported file is one file, small, clean, described, and equal to torch; a file that differs never appears."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import export.onnx as exporter
from engine.cli import parse
from engine.errors import UserError
from engine.macs import count_parameters
from engine.onnx_file import fold_batch_norm, to_onnx
from export.onnx import Export
from export.verify import Parity, check_file, compare
from ofa.cost import footprints_of
from ofa.space import Space, encode, find_arch, largest, load_space, sample
from ofa.subnet import Subnet
from ofa.trained import Trained


def randomised(space: Space, seed: int) -> Subnet:
    """A subnet with running statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = Subnet(space, sample(space, np.random.default_rng(seed)), 5)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "weight" in name or "var" in name else nn.init.normal_(tensor, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def exported(trained_run: Path) -> Path:
    assert parse(Export, ["--run", str(trained_run), "--arch", "largest"]).execute() == 0
    return trained_run / "export" / "largest.onnx"


def test_the_file_is_what_the_issue_asks(exported: Path, trained_run: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.ir_version <= 10
    assert next(o.version for o in model.opset_import if o.domain == "") == 18
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert [p.name for p in exported.parent.iterdir() if p.name.startswith("largest")] in (
        ["largest.onnx", "largest.json"],
        ["largest.json", "largest.onnx"],
    )
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert not re.search(rb"\.py\b", exported.read_bytes())


def test_metadata_is_enough_to_run_it_without_us(exported: Path, trained_run: Path) -> None:
    """onnxruntime, NumPy and the file's own description classify raw test images as well as torch does."""
    session = ort.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    preparation = json.loads(facts["preprocessing"])
    trained = Trained(trained_run, torch.device("cpu"))
    arch = find_arch(trained.space, "largest")
    assert json.loads(facts["classes"]) == [str(d) for d in range(10)]
    assert json.loads(facts["arch"])["resolution"] == arch.resolution
    assert int(facts["macs"]) == trained.cost(arch)[0]
    assert json.loads(facts["versions"])["torch"]
    raw, labels = trained.data.splits["test"]  # type: ignore[attr-defined]
    scaled = (raw.float() / 255 - torch.tensor(preparation["mean"])[:, None, None]) / torch.tensor(preparation["std"])[:, None, None]
    x = nn.functional.interpolate(scaled, preparation["resize"], mode="bicubic").numpy()
    (logits,) = session.run(["logits"], {"image": x})
    assert float((logits.argmax(1) == labels.numpy()).mean()) == pytest.approx(trained.accuracy(arch, "test"), abs=1e-6)


@pytest.mark.parametrize("name", ["digits", "small32", "small128"])
def test_equal_on_architectures_of_every_kind(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    net = randomised(space, 1)
    x = torch.randn(9, 3, net.arch.resolution, net.arch.resolution)
    to_onnx(net, x[:2], tmp_path / "x.onnx", {})
    parity = compare(net, tmp_path / "x.onnx", x)
    assert parity.passed
    assert parity.images == 9
    assert check_file(tmp_path / "x.onnx", count_parameters(net)) == ""


def test_folding_changes_nothing_and_leaves_the_original_alone() -> None:
    net = randomised(Space.model_validate(load_space("small32").model_dump() | {"shortcut": "projected", "resolution": (16, 32)}), 2)
    x = torch.randn(3, 3, net.arch.resolution, net.arch.resolution)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(net)(x), net(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_wrong_file_fails_the_comparison(tmp_path: Path) -> None:
    net, other = randomised(load_space("digits"), 1), randomised(load_space("digits"), 1)
    nn.init.normal_(other.classifier.weight)
    x = torch.randn(4, 3, net.arch.resolution, net.arch.resolution)
    to_onnx(other, x[:2], tmp_path / "x.onnx", {})
    assert not compare(net, tmp_path / "x.onnx", x).passed
    nn.init.constant_(other.classifier.bias, float("nan"))
    to_onnx(other, x[:2], tmp_path / "x.onnx", {})
    assert not compare(net, tmp_path / "x.onnx", x).passed
    assert not Parity(float("nan"), 1.0, 4).passed


def test_a_file_with_more_than_the_subnet_is_refused(tmp_path: Path) -> None:
    net = randomised(load_space("digits"), 1)
    x = torch.randn(2, 3, net.arch.resolution, net.arch.resolution)
    to_onnx(net, x, tmp_path / "x.onnx", {})
    assert "numbers, but the subnet has only" in check_file(tmp_path / "x.onnx", count_parameters(net) // 2)


def test_a_failure_leaves_no_file_and_exits_1(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", str(trained_run), "--arch", "smallest"]
    assert parse(Export, words).execute() == 0
    path = trained_run / "export" / "smallest.onnx"
    assert path.exists()
    monkeypatch.setattr(exporter, "compare", lambda *_: Parity(0.5, 0.5, 8))
    assert parse(Export, words).execute() == 1
    assert not list(path.parent.glob("smallest*"))
    assert not list(path.parent.glob("tmp*"))


def test_a_run_of_one_architecture_alone(train: Callable[..., int], tmp_path: Path) -> None:
    train(tmp_path / "run", "--arch", "smallest", "--epochs", "1")
    assert parse(Export, ["--run", str(tmp_path / "run")]).execute() == 0
    assert (tmp_path / "run" / "export" / "alone.onnx").exists()


def test_selected_subnets(trained_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("selected", "export"))
    with pytest.raises(UserError, match=r"has no selected subnet; run python -m predictors\.select"):
        parse(Export, ["--run", str(copy)]).execute()
    trained = Trained(copy, torch.device("cpu"))
    facts = {"arch": largest(trained.space).model_dump(mode="json"), "macs": 1, "predicted_accuracy": 0.5, "val_accuracy": 0.25}
    (copy / "selected").mkdir()
    (copy / "selected" / "1M.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has no selected subnet '2M'; it has 1M"):
        parse(Export, ["--run", str(copy), "--selected", "2M"]).execute()
    assert parse(Export, ["--run", str(copy)]).execute() == 0
    manifest = json.loads((copy / "export" / "1M.json").read_text())
    assert manifest["predicted_accuracy"] == 0.5
    assert manifest["val_accuracy"] == trained.accuracy(largest(trained.space), "val"), "measured, not copied"
    assert manifest["parity"]["relative_error"] < 1e-4
    assert manifest["bytes"] == (copy / "export" / "1M.onnx").stat().st_size


def test_the_file_is_as_large_as_predicted(exported: Path, trained_run: Path) -> None:
    trained, size = Trained(trained_run, torch.device("cpu")), exported.stat().st_size
    row = encode(trained.space, largest(trained.space))
    predicted = footprints_of(trained.space, row[None], len(trained.model.classes), trained.model.channels).file[0]
    assert abs(predicted - size) < 0.01 * size
