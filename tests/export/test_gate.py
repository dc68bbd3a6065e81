"""The gate of quantised files judges in exact sums, on images that gave no range, and says what they tell."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from large_sums import write_large_sums
from onnx import TensorProto
from torch import nn

import export
from engine.errors import UserError
from engine.statistics import paired_drop_interval
from export import pipeline
from export.formats import onnx as onnx_format
from export.formats.onnx import open_onnxruntime, run_session
from export.graph.gate import gate_note, split_images
from export.targets import find_target
from export.targets.target import Target

IMAGES = torch.randn(220, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PRECISE = "session.x64quantprecision"


class Swish(nn.Module):
    """A convolution with MobileNetV3's activation, a gate as in squeeze-and-excitation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.classifier = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.next(nn.functional.hardswish(self.conv(x))))
        x = x * nn.functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.classifier(x.mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return Swish().eval()


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every session that this project opens from now on says of exact sums: "1", or nothing."""
    found = []

    def open_session(path: str, options: ort.SessionOptions, **rest: Any) -> ort.InferenceSession:
        try:
            found.append(options.get_session_config_entry(PRECISE))
        except RuntimeError:
            found.append("")
        return ort.InferenceSession(path, options, **rest)

    only_ours = SimpleNamespace(
        InferenceSession=open_session, SessionOptions=ort.SessionOptions, __version__=ort.__version__
    )
    monkeypatch.setattr(onnx_format, "ort", only_ours)
    return found


@pytest.mark.slow
def test_every_session_that_judges_is_exact_and_only_the_clock_is_not(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = recorded(monkeypatch)
    export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", images=IMAGES, max_drop=100)
    assert sessions[-1] == "" and set(sessions[:-1]) == {"1"} and len(sessions) >= 3
    sessions.clear()
    # Less than nothing may be lost, so that layers are ranked, too.
    with pytest.raises(UserError, match="points of top-1 in 8 bits"):
        export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", images=IMAGES, max_drop=-1)
    assert set(sessions) == {"1"} and len(sessions) >= 6


@pytest.mark.slow
def test_a_target_that_is_this_cpu_is_judged_as_programs_here_compute(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = recorded(monkeypatch)
    manifest = export.to_onnx(net, tmp_path / "x.onnx", "this-cpu-int8", images=IMAGES, max_drop=100)
    # Only the check that metadata changes nothing compares a file with itself.
    assert sessions.count("") >= 3
    assert manifest.quantization is not None and manifest.quantization["sums"] == "this-cpu"
    assert "CPUs like the one that exports" in find_target("this-cpu-int8").runs_on
    with pytest.raises(ValueError, match="sums: this-cpu is about 8-bit products"):
        Target(name="x", runs_on="x", sums="this-cpu", why=("x",))


def test_sums_of_large_8_bit_products_are_the_integers(tmp_path: Path) -> None:
    x, wanted = write_large_sums(tmp_path / "sums.onnx")
    got = run_session(open_onnxruntime(tmp_path / "sums.onnx"), x)
    np.testing.assert_array_equal(got, wanted)


def test_whatever_a_quantiser_raises_is_a_sentence(net: nn.Module) -> None:
    said = "LiteRT cannot quantise Swish: no such operator; choose a target in float32"
    with pytest.raises(UserError, match=said), pipeline._quantising(net, "LiteRT"):
        raise RuntimeError("no such operator\nand more")


@pytest.mark.parametrize("count", [2, 3, 12, 220, 511, 2000])
def test_no_image_gives_ranges_and_judges(count: int) -> None:
    calibration, judges = split_images(count)
    assert sorted([*calibration, *judges]) == list(range(count))
    assert 1 <= len(calibration) <= min(256, len(judges))
    assert len(set(calibration)) == len(calibration)


@pytest.mark.slow
def test_images_of_a_caller_are_divided_or_of_two_kinds(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[bytes], set[bytes]]] = []

    def rows(batches: Any) -> set[bytes]:
        return {image.tobytes() for batch in batches for image in batch}

    def look(model: Any, out: Any, calibration: Any, reference: Any, *rest: Any) -> Any:
        seen.append((rows(calibration), rows(x for x, _ in reference.batches())))
        return real(model, out, calibration, reference, *rest)

    real = pipeline.quantize
    monkeypatch.setattr(pipeline, "quantize", look)
    labels = torch.zeros(220, dtype=torch.int64)
    export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", images=IMAGES, labels=labels, max_drop=100)
    ((ranges, judges),) = seen
    assert (len(ranges), len(judges)) == (110, 110) and not ranges & judges
    seen.clear()
    own = {"images": IMAGES[:120], "calibration": IMAGES[120:]}
    export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", max_drop=100, **own)
    ((ranges, judges),) = seen
    assert (len(ranges), len(judges)) == (100, 120) and not ranges & judges


def test_one_image_is_refused(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="1 image cannot give the ranges of a quantised file and judge it too"
    ):
        export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", images=IMAGES[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_few_images_say_what_the_gate_can_tell(net: nn.Module, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="with 12 images to judge it, the gate can tell differences above 12"
    ):
        manifest = export.to_onnx(net, tmp_path / "x.onnx", "cpu-int8", images=IMAGES[:24], max_drop=100)
    assert manifest.quantization is not None and "from 12 images" in manifest.quantization["note"]
    low, high = manifest.quantization["drop_interval"]
    assert low <= manifest.quantization["drop"] <= high and high - low > 20
    assert gate_note(100, 100) == ""
    assert "can tell differences above 12 points" in gate_note(12, 256)
    assert gate_note(500, 10) == "its ranges come from 10 images, and others may leave them"


def test_the_interval_of_a_drop() -> None:
    assert paired_drop_interval(0, 0, 12) == pytest.approx((-1.6449 / 14, 1.6449 / 14))
    low, high = paired_drop_interval(30, 10, 1000)
    assert low < 0.02 < high and high - low == pytest.approx(2 * 1.6449 * 41**0.5 / 1002, rel=0.02)
    # Of 400 experiments with a true drop of 4 points about 90% hold it.
    rng = np.random.default_rng(0)
    lost, gained = rng.multinomial(150, [0.06, 0.02, 0.92], 400)[:, :2].T
    intervals = [paired_drop_interval(int(a), int(b), 150) for a, b in zip(lost, gained, strict=True)]
    assert 0.85 < np.mean([low <= 0.04 <= high for low, high in intervals]) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("qnn", "UINT8"), ("qnn-a16w8", "UINT16")])
def test_an_npu_gets_hard_swish_quantised_and_whole(
    net: nn.Module, tmp_path: Path, target: str, kind: str
) -> None:
    path = tmp_path / "x.onnx"
    manifest = export.to_onnx(net, path, target, images=IMAGES, max_drop=100)
    assert manifest.parity["snr_db"] > (25 if target == "qnn" else 30)
    model = onnx.load(path)
    nodes = model.graph.node
    assert {entry.domain for entry in model.opset_import} == {node.domain for node in nodes} == {""}
    makers = {node.output[0]: node.op_type for node in nodes}
    activations = [node for node in nodes if node.op_type in ("HardSwish", "HardSigmoid")]
    assert [node.op_type for node in activations] == ["HardSwish", "HardSwish", "HardSigmoid"]
    for node in activations:
        assert makers[node.input[0]] == "DequantizeLinear"
        assert {n.op_type for n in nodes if node.output[0] in n.input} == {"QuantizeLinear"}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    types = {values[node.input[2]].data_type for node in nodes if node.op_type == "QuantizeLinear"}
    assert types == {getattr(TensorProto, kind)}
    weights = {tensor.data_type for tensor in values.values() if len(tensor.dims) == 4}
    assert weights == {TensorProto.INT8}


def export_all(folder: Path) -> None:
    """Not .ort files, in which onnxruntime's converter writes a hash table in an order that changes."""
    for target in ("nnapi", "cpu-int8", "qnn-a16w8", "fp16"):
        export.to_onnx(Swish().eval(), folder / f"{target}.onnx", target, images=IMAGES, max_drop=100)


SCRIPT = """
import sys, torch
from pathlib import Path
from test_gate import export_all
torch.set_num_threads(1)
export_all(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """This process and another, in which strings have other hashes."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    export_all(here)
    root = Path(export.__file__).parents[1]
    places = os.pathsep.join(map(str, (root, root / "tests" / "export", root / "tests" / "support")))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": places}
    subprocess.run([sys.executable, "-c", SCRIPT, str(there)], check=True, env=env, capture_output=True)
    first = {path.name: path.read_bytes() for path in here.iterdir()}
    assert len(first) == 8
    for name, content in first.items():
        # The manifest beside a file has the time that it took, and nothing else may differ.
        if not name.endswith(".json"):
            assert content == (there / name).read_bytes(), name
