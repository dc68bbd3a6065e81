"""The command: files that are one file, small, clean, described, and equal to torch; a file that differs
never appears."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from engine.command.cli import parse
from engine.errors import UserError
from engine.run import digest
from export import pipeline
from export.formats.onnx import open_onnxruntime
from export.manifest import manifest_path, read_manifest
from export.onnx import Export
from export.verify import Parity
from ofa.cost import footprints_of
from ofa.space.arch import largest
from ofa.space.codes import encode
from ofa.space.published import find_arch
from ofa.trained import TrainedSupernet


def test_the_file_is_what_the_issue_asks(exported: Path) -> None:
    path = exported / "largest.onnx"
    model = onnx.load(path, load_external_data=False)
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.ir_version <= 10
    assert next(o.version for o in model.opset_import if o.domain == "") == 18
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_nothing_else_is_left_in_the_folder_and_no_path_of_this_machine(
    exported: Path, trained_run: Path
) -> None:
    names = {path.name for path in exported.iterdir()}
    assert not [name for name in names if name.startswith((".", "tmp"))]
    files = {
        f"largest{middle}"
        for middle in (".onnx", ".nnapi.onnx", ".cpu-int8.onnx", ".mobile.ort", ".fp16.onnx")
    }
    manifests = {manifest_path(Path(name)).name for name in files}
    beside = {"largest.mobile.required_operators.config"}
    assert {name for name in names if name.startswith("largest")} == files | manifests | beside
    home = str(Path(__file__).parent.parent.parent).encode()
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not re.search(rb"\.py\b", content), path
        assert home not in content and str(trained_run).encode() not in content and b"/tmp/" not in content, (
            path
        )


@pytest.mark.slow
def test_exporting_twice_gives_the_same_bytes(trained_run: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("first", "second"):
        shutil.copytree(trained_run, tmp_path / name)
        flags = ("--run", str(tmp_path / name), "--arch", "smallest", "--target", "cpu,cpu-int8")
        assert parse(Export, list(flags)).execute() == 0
        folders.append(tmp_path / name / "export")
    for name in ("smallest.onnx", "smallest.cpu-int8.onnx"):
        first, second = (folder / name for folder in folders)
        assert first.read_bytes() == second.read_bytes()
        before, now = read_manifest(first).model_dump(), read_manifest(second).model_dump()
        # The time is measured anew each time; it stands beside the file only.
        assert before | {"milliseconds": 0} == now | {"milliseconds": 0}


def test_metadata_is_enough_to_run_it_without_us(exported: Path, trained_run: Path) -> None:
    """onnxruntime and the file's own description classify raw test images as well as torch does."""
    session = ort.InferenceSession(str(exported / "largest.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    preparation = json.loads(facts["preprocessing"])
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    arch = find_arch(trained.space, "largest")
    assert json.loads(facts["classes"]) == [str(d) for d in range(10)]
    assert json.loads(facts["architecture"])["arch"] == arch.model_dump(mode="json")
    assert int(facts["macs"]) == trained.cost(arch)[0]
    assert json.loads(facts["versions"])["torch"]
    raw, labels = trained.data.splits["test"]  # type: ignore[attr-defined]
    mean, std = (torch.tensor(preparation[key])[:, None, None] for key in ("mean", "std"))
    scaled = (raw.float() / 255 - mean) / std
    x = nn.functional.interpolate(scaled, preparation["resize"], mode="bicubic").numpy()
    (logits,) = session.run(["logits"], {"image": x})
    found = float((logits.argmax(1) == labels.numpy()).mean())
    assert found == pytest.approx(trained.accuracy(arch, "test"), abs=1e-6)


@pytest.mark.slow
def test_the_manifest_tells_the_truth(exported: Path, trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    arch = largest(trained.space)
    files = [path for path in exported.glob("largest*") if path.suffix in (".onnx", ".ort")]
    assert len(files) == 5
    for path in files:
        manifest = read_manifest(path)
        assert manifest.accuracy is not None
        measured = trained.accuracy(arch, "val")
        assert manifest.accuracy.torch == pytest.approx(measured, abs=1e-6), "measured, not copied"
        session = open_onnxruntime(path)  # exact, so that 8 bits are the same on every CPU
        hits = count = 0
        for x, y in trained.data.batches("val", 1 if manifest.input.shape[0] == 1 else 64):
            if x.shape[-1] != arch.resolution:
                x = nn.functional.interpolate(x, (arch.resolution,) * 2, mode="bicubic")
            (logits,) = session.run(None, {"image": x.contiguous().numpy()})
            hits, count = hits + int((logits.argmax(1) == y.numpy()).sum()), count + len(y)
        assert count == manifest.accuracy.images
        assert manifest.accuracy.file == pytest.approx(hits / count, abs=1e-6)
        assert (manifest.bytes, manifest.sha256) == (path.stat().st_size, digest(path))
        inside = session.get_modelmeta().custom_metadata_map
        assert json.loads(inside["accuracy"]) == manifest.accuracy.model_dump()
        assert inside["target"] == manifest.target


@pytest.mark.slow
def test_pixels_in_and_probabilities_out(trained_run: Path) -> None:
    """With the normalisation in the graph, raw uint8 images of the right size are all it needs."""
    for layout in ("NHWC", "NCHW"):
        network = ["--run", str(trained_run), "--arch", "smallest"]
        words = [*network, "--bake", "normalize", "--layout", layout, "--softmax"]
        assert parse(Export, words).execute() == 0
        path = trained_run / "export" / "smallest.onnx"
        manifest = read_manifest(path)
        assert (manifest.input.dtype, manifest.input.layout) == ("uint8", layout)
        assert manifest.output.name == "probabilities"
        trained = TrainedSupernet(trained_run, torch.device("cpu"))
        raw, labels = trained.data.splits["test"]  # type: ignore[attr-defined]
        assert trained.data.size == find_arch(trained.space, "smallest").resolution
        pixels = raw.permute(0, 2, 3, 1) if layout == "NHWC" else raw
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (got,) = session.run(["probabilities"], {"image": pixels.contiguous().numpy()})
        assert got.sum(1) == pytest.approx(1, abs=1e-5)
        assert float((got.argmax(1) == labels.numpy()).mean()) == pytest.approx(
            trained.accuracy(find_arch(trained.space, "smallest"), "test"), abs=1e-6
        )


@pytest.mark.slow
def test_a_failure_leaves_no_file_and_exits_1(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", str(trained_run), "--arch", "smallest", "--images", "64"]
    assert parse(Export, words).execute() == 0
    path = trained_run / "export" / "smallest.onnx"
    assert path.exists()
    # Nothing was selected, so that the report would refuse.
    assert f"next: python -m export.benchmark {path}" in capsys.readouterr().out
    monkeypatch.setattr(pipeline, "compare_file", lambda *_, **__: Parity(0.5, 1.0, 0.5, 0.5, 8))
    assert parse(Export, words).execute() == 1
    assert "next:" not in capsys.readouterr().out
    assert not list(path.parent.glob("smallest*"))
    assert not list(path.parent.glob(".export*"))


@pytest.mark.slow
def test_a_run_of_one_architecture_alone(train: Callable[..., int], tmp_path: Path) -> None:
    train(tmp_path / "run", "--arch", "smallest", "--epochs", "1")
    assert parse(Export, ["--run", str(tmp_path / "run")]).execute() == 0
    assert read_manifest(tmp_path / "run" / "export" / "alone.onnx").subnet == "alone"


@pytest.mark.slow
def test_selected_subnets(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("selected", "export"))
    with pytest.raises(UserError, match=r"has no selected subnet; run python -m predictors\.select"):
        parse(Export, ["--run", str(copy)]).execute()
    trained = TrainedSupernet(copy, torch.device("cpu"))
    facts = {
        "arch": largest(trained.space).model_dump(mode="json"),
        "macs": 1,
        "predicted_accuracy": 0.5,
        "val_accuracy": 0.25,
    }
    (copy / "selected").mkdir()
    name = "1M-with-a-name-that-is-much-longer-than-a-column"
    (copy / "selected" / f"{name}.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has no selected subnet '2M'; it has 1M"):
        parse(Export, ["--run", str(copy), "--selected", "2M"]).execute()
    assert parse(Export, ["--run", str(copy)]).execute() == 0
    assert f"{name}.onnx" in capsys.readouterr().out, "the table cuts no name"
    manifest = read_manifest(copy / "export" / f"{name}.onnx")
    assert manifest.accuracy is not None
    assert manifest.accuracy.predicted == 0.5
    assert manifest.accuracy.torch == pytest.approx(trained.accuracy(largest(trained.space), "val"), abs=1e-6)


def test_what_does_not_go_together_is_one_sentence(trained_run: Path) -> None:
    for words, sentence in (
        (["--softmax"], "with --bake normalize"),
        (["--bake", "preprocessing", "--features"], "of classifiers that take images as cameras give them"),
        (["--bake", "preprocessing", "--layout", "NCHW"], "of classifiers that take images as cameras"),
        (["--target", "nnap"], "did you mean 'nnapi'"),
        (["--target", ","], "names no target"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse(Export, ["--run", str(trained_run), "--arch", "smallest", *words]).execute()


@pytest.mark.slow
def test_a_retrained_genotype(tmp_path: Path) -> None:
    from oneshot.retrain import Retrain

    out = tmp_path / "cell"
    small = ["--epochs", "1", "--network.cells", "3", "--network.channels", "4"]
    words = [*small, "--out", str(out), "--device", "cpu"]
    assert parse(Retrain, words).execute() == 0
    assert parse(Export, ["--run", str(out), "--target", "cpu,cpu-int8", "--max-drop", "20"]).execute() == 0
    manifest = read_manifest(out / "export" / "genotype.onnx")
    assert set(manifest.architecture["genotype"]["cells"]) == {"normal", "reduce"}
    model = onnx.load(out / "export" / "genotype.onnx")
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node), (
        "those behind a concatenation, too"
    )
    with pytest.raises(UserError, match="leave out --arch"):
        parse(Export, ["--run", str(out), "--arch", "largest"]).execute()


def test_the_file_is_as_large_as_predicted(exported: Path, trained_run: Path) -> None:
    trained, size = (
        TrainedSupernet(trained_run, torch.device("cpu")),
        (exported / "largest.onnx").stat().st_size,
    )
    row = encode(trained.space, largest(trained.space))
    predicted = footprints_of(
        trained.space, row[None], len(trained.model.classes), trained.model.channels
    ).file[0]
    assert size <= predicted <= size + 1600, "a limit of the file size must hold"
