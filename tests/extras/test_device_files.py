"""A run's network for the runtimes of the extras. Run by hand where one is installed: pytest tests/extras.

What every format must do, tests/contracts/test_formats.py tests, also for these. Each test is skipped where
its runtime is missing; an environment of its own for each is the usual way, as docs/export.md shows.
"""

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import export
from engine.command.cli import parse
from engine.errors import UserError
from export.formats import find_format, format_of
from export.manifest import Manifest, read_manifest
from export.onnx import Export
from export.targets import find_target

pytestmark = pytest.mark.filterwarnings("ignore")  # the converters' own imports warn


def write(run: Path, target: str) -> tuple[Path, Manifest]:
    """The run's largest subnet for a target, and its manifest; the test is skipped without the runtime."""
    file_format = find_format(find_target(target).format)
    try:
        file_format.check_installed(to_write=True)
    except UserError as error:
        pytest.skip(str(error))
    words = ["--run", str(run), "--arch", "largest", "--target", target, "--max-drop", "10"]
    assert parse(Export, words).execute() == 0
    path = run / "export" / find_target(target).file_name("largest")
    first = [part.read_bytes() for part in file_format.parts(path)]
    manifest = read_manifest(path)
    if file_format.name == "qnn":
        # Its compiler goes on numbering from the last file of the process: the bytes of another process are
        # the same, those of this one are not.
        return path, manifest
    assert parse(Export, words).execute() == 0
    assert [part.read_bytes() for part in file_format.parts(path)] == first, "the same export, the same bytes"
    return path, manifest


@pytest.mark.parametrize("target", ["litert", "ncnn", "mnn"])
def test_float_files_are_equal_to_torch(trained_run: Path, target: str) -> None:
    _, manifest = write(trained_run, target)
    assert manifest.parity is not None and manifest.parity["relative_error"] < 1e-5
    assert manifest.parity["same_top1"] == 1.0


@pytest.mark.parametrize("target", ["litert-int8", "litert-npu"])
def test_litert_in_8_bits(trained_run: Path, target: str) -> None:
    path, manifest = write(trained_run, target)
    # A moving average of the ranges, the quantiser's default, gives about half of these decibels.
    assert manifest.parity is not None and manifest.parity["snr_db"] > 18
    assert manifest.quantization is not None and manifest.quantization["calibration_images"] > 1
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert [end["dtype"] for end in ends] == [np.float32, np.float32]
    names = [end["name"] for end in ends]
    assert manifest.model_dump()["names_in_file"]["input"] in names[0]
    weights = [t for t in interpreter.get_tensor_details() if len(t["shape"]) == 4 and t["dtype"] == np.int8]
    assert weights


@pytest.mark.parametrize("target", ["qnn-sm8550", "qnn-sm8850"])
def test_qnn_is_one_context_for_the_chip(trained_run: Path, target: str) -> None:
    path, manifest = write(trained_run, target)
    assert manifest.compiled is not None
    assert str(manifest.compiled).startswith(f"one context for {find_target(target).chip} (v")
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == ["EPContext"]
    assert {entry.key for entry in model.metadata_props} > {"classes", "preprocessing", "accuracy"}
    assert manifest.milliseconds is None


def test_qnn_computes_floats_in_16_bits_and_tells_of_what_is_outside(tmp_path: Path) -> None:
    qnn = find_format("qnn")
    if not qnn.installed():
        pytest.skip("onnxruntime-qnn is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 5)).eval()
    values = {"name": "x", "runs_on": "x", "batch": "one", "format": "qnn", "why": ("x",)}
    target = export.find_target("qnn-sm8650").model_validate(values | {"precision": "float16"})
    manifest = export.to_onnx(net, tmp_path / "x.qnn", target, images=torch.randn(4, 3, 8, 8))
    assert manifest.compiled is not None and manifest.compiled.contexts == 1
    assert manifest.parity is not None and 40 < manifest.parity["snr_db"] < 120


def test_a_core_ml_package_has_shapes_precision_and_weights(trained_run: Path, tmp_path: Path) -> None:
    path, manifest = write(trained_run, "mlpackage")
    if find_format("mlpackage").not_run_here():
        assert manifest.not_run is not None and manifest.parity is None
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path)
    import coremltools as ct

    model = ct.models.MLModel(str(tmp_path / "largest.mlpackage"), skip_model_load=True)
    spec = model.get_spec()
    shapes = [end.type.multiArrayType.shape for end in (*spec.description.input, *spec.description.output)]
    assert [list(shape) for shape in shapes] == [list(manifest.input.shape), [1, 10]]
    function = spec.mlProgram.functions["main"]
    kinds = {operation.type for operation in function.block_specializations[function.opset].operations}
    assert {"conv", "linear"} <= kinds and "batch_norm" not in kinds


def test_core_ml_weights_are_compared_with_the_network(tmp_path: Path) -> None:
    if not find_format("mlpackage").installed():
        pytest.skip("coremltools is not installed")
    import coremltools as ct

    from export.formats.mlpackage import _complaint

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    export.to_onnx(net, tmp_path / "x.mlpackage.zip", "mlpackage", images=torch.randn(2, 3, 8, 8))
    with zipfile.ZipFile(tmp_path / "x.mlpackage.zip") as packed:
        packed.extractall(tmp_path)
    model = ct.models.MLModel(str(tmp_path / "x.mlpackage"), skip_model_load=True)
    image = np.zeros((1, 3, 8, 8), np.float32)
    assert _complaint(model, net, "float16", image) == ""
    assert "not among its float32 numbers" in _complaint(model, net, "float32", image)
    with torch.no_grad():
        net[3].weight[0, 0] += 0.1
    assert _complaint(model, net, "float16", image) == "weight '3.weight' is not among its float16 numbers"


def test_core_ml_may_fold_norms_itself(tmp_path: Path) -> None:
    if not find_format("mlpackage").installed():
        pytest.skip("coremltools is not installed")

    class Normed(nn.Module):
        """A norm that is not in an nn.Sequential behind its convolution, as timm writes networks."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)
            nn.init.uniform_(self.bn.weight, -2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.bn(self.conv(x)).relu().flatten(1))

    path = tmp_path / "x.mlpackage.zip"
    export.to_onnx(Normed().eval(), path, "mlpackage", images=torch.randn(2, 3, 8, 8))
    assert path.is_file()


@pytest.mark.parametrize("target", ["ncnn", "mnn", "mlpackage"])
def test_pixels_are_refused_in_a_sentence(tmp_path: Path, target: str) -> None:
    file_format = find_format(target)
    if not file_format.installed():
        pytest.skip(f"{file_format.runtime} is not installed")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    bake = export.Bake((0.5,) * 3, (0.2,) * 3)
    path = tmp_path / f"x{file_format.suffix}"
    with pytest.raises(UserError, match=r"takes float32 [^\n]*; leave out --bake"):
        export.to_onnx(net, path, target, images=torch.randn(2, 3, 8, 8), bake=bake)
    assert list(tmp_path.iterdir()) == []


def test_ncnn_refuses_weights_that_are_cut_off(trained_run: Path, tmp_path: Path) -> None:
    path, _ = write(trained_run, "ncnn")
    for part in find_format("ncnn").parts(path):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    weights = tmp_path / "largest.ncnn.bin"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"the weights in largest\.ncnn\.bin are not complete"):
        format_of(tmp_path / path.name).open(tmp_path / path.name)
