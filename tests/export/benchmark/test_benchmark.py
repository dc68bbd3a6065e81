"""What the benchmark says of a file is true of the file, does not depend on this process, and a bad file is
one sentence."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import export.benchmark.__main__ as module
from engine.command.cli import parse
from engine.errors import UserError
from engine.onnx_file import set_metadata, write_onnx
from export.benchmark.__main__ import Benchmark
from export.benchmark.measure import Timing, open_model_file, timing_complaint
from export.benchmark.partitions import estimate_partitions
from export.benchmark.probe import look_into, probe_file


class Net(nn.Sequential):
    def __init__(self, act: type[nn.Module], width: int = 8):
        layers = [
            nn.Conv2d(3, width, 3),
            act(),
            nn.Conv2d(width, 8, 3),
            act(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ]
        super().__init__(*layers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    says = {"accuracy": {"file": 0.75, "images": 40, "split": "val"}, "macs": 1234}
    write_onnx(Net(nn.Hardswish).eval(), torch.zeros(2, 3, 16, 16), path / "swish.onnx", says)
    write_onnx(Net(nn.ReLU6).eval(), torch.zeros(2, 3, 16, 16), path / "relu6.onnx", {"accuracy": "none"})
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the file is for this kind of processor
    options.optimized_model_filepath = str(path / "swish.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(path / "swish.onnx"), options, providers=["CPUExecutionProvider"])
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(*words: object) -> int:
    return parse(Benchmark, [*map(str, words), "--seconds", "0"]).execute()


def test_table_csv_and_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["swish.onnx", "relu6.onnx", "swish.ort"]
    assert run(*(folder / name for name in names), "--rounds", "2", "--out", tmp_path) == 0
    table = {row["file"]: row for row in rows(tmp_path / "benchmark.csv")}
    assert list(table) == names
    for name, row in table.items():
        assert int(row["bytes"]) == (folder / name).stat().st_size
        assert 0 < float(row["wall_p50"]) <= float(row["wall_p90"])
        assert (row["runs"], row["wall_p99"]) == ("16", ""), "of 16 runs, p99 is not known"
        assert row["input"] == "1x3x16x16" and row["threads"] == "1"
    swish, relu6, converted = table.values()
    assert (swish["val_accuracy"], swish["macs"], converted["val_accuracy"], relu6["val_accuracy"]) == (
        "0.75",
        "1234.0",
        "0.75",
        "",
    )
    assert (
        int(swish["nodes"]) == len(onnx.load(folder / "swish.onnx").graph.node) and converted["nodes"] == ""
    )
    assert (relu6["nnapi_partitions_estimate"], converted["nnapi_partitions_estimate"]) == ("1", "")
    operators = rows(tmp_path / "operators.csv")
    convolutions = {row["file"]: row for row in operators if row["operator"] == "Conv"}
    assert set(convolutions) == set(names) and all(row["nodes"] == "2" for row in convolutions.values())
    for name in names:
        times = [float(row["microseconds"]) for row in operators if row["file"] == name]
        assert times == sorted(times, reverse=True)
        assert sum(int(row["nodes"]) for row in operators if row["file"] == name) == int(
            table[name]["nodes_executed"]
        )
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "75.0%" in out and "(estimate)" in out and "next: python -m export.targets" in out


def test_without_accuracies_there_is_no_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder / "relu6.onnx", "--rounds", "2", "--out", tmp_path) == 0
    assert not (tmp_path / "benchmark.png").exists()
    assert "no picture, since no file says its accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_the_files_and_not_of_this_process(folder: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory of a process is known on Linux only")
    wide = helper.make_tensor(
        "w",
        TensorProto.FLOAT,
        [3 * 16 * 16, 20_000],
        np.ones(3 * 16 * 16 * 20_000, np.float32).tobytes(),
        raw=True,
    )
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [-1, 3 * 16 * 16])
    nodes = [
        helper.make_node("Reshape", ["image", "s"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    ends = [("image", ["batch", 3, 16, 16]), ("logits", ["batch", 20_000])]
    save(tmp_path / "wide.onnx", nodes, ends[:1], ends[1:], [wide, shape])
    small, large = probe_file(folder / "relu6.onnx", 1), probe_file(tmp_path / "wide.onnx", 1)
    assert not isinstance(small, str) and not isinstance(large, str)
    assert large.added - small.added > 3 * 16 * 16 * 20_000 * 4 * 0.9
    held = np.ones(200_000_000, np.uint8)  # a peak of this process that its child must not report as its own
    again = probe_file(folder / "relu6.onnx", 1)
    assert not isinstance(again, str)
    assert 0 < again.added < again.memory < len(held)


def test_a_users_own_modules_do_not_shadow_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that looks into a file starts in the user's folder, where names like ours may lie."""
    for name in ("export.py", "numpy.py", "onnxruntime.py", "engine/__init__.py"):
        mine = tmp_path / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("raise SystemExit('this is not the toolkit')")
    monkeypatch.chdir(tmp_path)
    found = probe_file(folder / "relu6.onnx", 1)
    assert not isinstance(found, str), found
    assert found.outputs == 5
    # A folder that the user names stays a place to import from, behind ours.
    (tmp_path / "numpy.py").unlink()
    (tmp_path / "onnxruntime.py").unlink()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe_file(folder / "relu6.onnx", 1)
    assert not isinstance(found, str), found


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list,
    outputs: list,
    constants: list[onnx.TensorProto],
    kind: int = 1,
) -> None:  # type: ignore[type-arg]
    ins = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
    graph = helper.make_graph(nodes, "g", ins, outs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_pixels_as_input(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=1),
        helper.make_node("ReduceMean", ["x", "axes"], ["logits"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    ends = [("image", ["n", 8, 8, 3]), ("logits", ["n", 3])]
    save(tmp_path / "pixels.onnx", nodes, ends[:1], ends[1:], [axes], TensorProto.UINT8)
    assert run(tmp_path / "pixels.onnx", "--rounds", "2") == 0
    assert rows(tmp_path / "benchmark.csv")[0]["input"] == "1x8x8x3"


def test_the_checker_sees_what_splits_a_graph(folder: Path) -> None:
    swish, relu6 = (
        estimate_partitions(onnx.load(folder / f"{name}.onnx"), [1, 3, 16, 16])["nnapi"]
        for name in ("swish", "relu6")
    )
    assert (relu6.partitions, relu6.share, relu6.left, relu6.verdict) == (1, 1.0, (), "yes")
    assert swish.partitions > 1 and swish.left == ("HardSwish",) and swish.share < 1


def test_accuracies_of_different_images_are_not_compared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(folder / "relu6.onnx")
    for images in (500, 64):
        set_metadata(model, {"accuracy": {"file": 0.5, "torch": 0.5, "images": images}})
        onnx.save(model, tmp_path / f"{images}.onnx")
    files = [tmp_path / "500.onnx", tmp_path / "64.onnx"]
    monkeypatch.setattr(module, "time_files", lambda *_: [Timing({0: [1.0], 1: [1.0]}, {0: [1.0]})] * 2)
    assert run(*files) == 0
    said = capsys.readouterr().out
    assert "measured on different numbers of images (64, 500), so they cannot be compared" in said
    assert "50.0% of 500" in said and "50.0% of 64" in said
    assert not (tmp_path / "benchmark.png").exists()
    assert [row["val_images"] for row in rows(tmp_path / "benchmark.csv")] == ["500", "64"]
    monkeypatch.setattr(module, "time_files", lambda *_: [Timing({0: [1.0], 1: [1.0]}, {0: [1.0]})])
    assert run(files[0]) == 0
    assert (tmp_path / "benchmark.png").exists() and "of 500" not in capsys.readouterr().out


def test_percentiles_and_noise_of_known_timings() -> None:
    quiet = Timing({turn: [1.0, 2.0, 3.0] for turn in range(40)}, {0: [0.5]})
    assert (quiet.percentile(50), quiet.percentile(99), quiet.noise, quiet.runs, quiet.cpu_p50) == (
        2,
        3,
        0,
        120,
        0.5,
    )
    drifts = Timing({turn: [1.0 + turn % 2 * 0.5] for turn in range(20)}, {})
    assert drifts.noise == pytest.approx(0.5) and drifts.percentile(99) is None


def test_disturbed_timings_are_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "time_files", lambda *_: [Timing({0: [1.0], 1: [2.0]}, {0: [1.5]})])
    assert run(folder / "relu6.onnx", "--out", tmp_path) == 0
    assert (
        "do not believe the times of relu6.onnx: two halves of the rounds differ by 100%"
        in capsys.readouterr().out
    )
    shared = Timing({0: [2.0], 1: [2.0]}, {0: [1.0]})
    assert timing_complaint(shared, 1) == "they are 2.0 times its CPU time, so that it waited for others"
    assert timing_complaint(shared, 2) == timing_complaint(shared._replace(cpu={0: [1.9]}), 1) == ""


@pytest.mark.slow
def test_networks_to_compare_with(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BASELINES", {"mobilenet_v3_small": "MobileNetV3 Small"})
    before = torch.random.get_rng_state()
    assert run(folder / "swish.onnx", "--compare", "--rounds", "2", "--out", tmp_path) == 0
    assert torch.equal(before, torch.random.get_rng_state())
    row = rows(tmp_path / "benchmark.csv")[1]
    assert (row["file"], row["val_accuracy"], row["input"]) == ("MobileNetV3 Small @16", "", "1x3x16x16")
    weights = (
        2_542_856 - 1000 * 1025 + 5 * 1025
    )  # the published number of parameters, with a classifier of 5 instead of 1000
    assert 0.98 < int(row["bytes"]) / (4 * weights) < 1.05


def damaged(name: str, folder: Path, out: Path) -> Path:
    good = (folder / "swish.onnx").read_bytes()
    bad = {
        "empty": b"",
        "text": b"hello",
        "half": good[: len(good) // 2],
        "last": good[:-50],
        "noise": good[:200] + bytes(200) + good[400:],
    }
    path = out / f"{name}.onnx"
    path.write_bytes(bad[name])
    return path


@pytest.mark.parametrize("name", ["empty", "text", "half", "last", "noise"])
def test_damaged_files_are_one_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    path = damaged(name, folder, tmp_path)
    with pytest.raises(
        UserError,
        match=r"^Model file '.*' cannot be used \(.+\); copy it again, or write it again with [^\n]*\.$",
    ):
        open_model_file(name, path, 1)


def test_a_file_for_images_of_any_size_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free, pool = tmp_path / "free.onnx", helper.make_node("GlobalAveragePool", ["a"], ["b"])
    nodes = [pool, helper.make_node("Flatten", ["b"], ["c"])]
    save(free, nodes, [("a", [1, 3, "height", "width"])], [("c", [1, 3])], [])
    assert run(free, folder / "swish.onnx", "--rounds", "2", "--out", tmp_path) == 0
    assert [row["file"] for row in rows(tmp_path / "benchmark.csv")] == ["swish.onnx"]
    assert f"'{free}' cannot be timed: it takes images of any size" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"takes images of any size.*without --bake preprocessing"):
        run(free)


def test_damaged_ort_files_and_other_models_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "half.ort").write_bytes((folder / "swish.ort").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cannot be used \([^\n]+\); copy it again"):
        open_model_file("x", tmp_path / "half.ort", 1)
    add = [helper.make_node("Add", ["a", "b"], ["logits"])]
    save(
        tmp_path / "two.onnx", add, [("a", [1, 3, 4, 4]), ("b", [1, 3, 4, 4])], [("logits", [1, 3, 4, 4])], []
    )
    with pytest.raises(ValueError, match="its input is not one image of a fixed size"):
        look_into(tmp_path / "two.onnx", 1)
    save(
        tmp_path / "map.onnx",
        [helper.make_node("Relu", ["a"], ["b"])],
        [("a", [1, 3, 4, 4])],
        [("b", [1, 3, 4, 4])],
        [],
    )
    with pytest.raises(
        ValueError, match=r"its output has shape \(1, 3, 4, 4\), which is not one number for each class"
    ):
        look_into(tmp_path / "map.onnx", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.onnx", "does not exist"),
        ("model.pb", r"its name must end in \.onnx, \.ort, .* or \.pte"),
        ("", "must end in"),
    ],
)
def test_what_is_no_model_file_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / name)


def test_a_file_that_is_not_what_its_manifest_says(bundled_run: Path, tmp_path: Path) -> None:
    for name in ("60k.onnx", "60k.json"):
        shutil.copyfile(bundled_run / "export" / name, tmp_path / name)
    content = bytearray((tmp_path / "60k.onnx").read_bytes())
    content[len(content) // 2] ^= 1  # some weight
    (tmp_path / "60k.onnx").write_bytes(content)
    with pytest.raises(UserError, match="SHA-256 differs"):
        run(tmp_path / "60k.onnx")
    (tmp_path / "60k.json").write_text('{"of": "somebody else"}')
    assert open_model_file("x", tmp_path / "60k.onnx", 1).probe.outputs == 10


def test_each_file_once(folder: Path) -> None:
    with pytest.raises(UserError, match="each once"):
        run(folder / "swish.onnx", folder / "swish.onnx")


def test_metadata_that_is_not_ours_is_no_accuracy(folder: Path, tmp_path: Path) -> None:
    for text in ("none", "[1]", '{"file": true}', json.dumps({"file": "0.5"}), "0.5"):
        model = onnx.load(folder / "relu6.onnx")
        helper.set_model_props(model, {"accuracy": text})
        onnx.save(model, tmp_path / "x.onnx")
    assert open_model_file("x", tmp_path / "x.onnx", 1).accuracy is None
