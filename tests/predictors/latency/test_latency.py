"""Tables, models and imports of latency: on real tables, on real measurements of a tiny space, and on made-up
devices of known truth."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from made_up_latency import made_up, made_up_blocks
from scipy.stats import kendalltau

from engine.blocks.latency_table import LatencyTable, read_table
from engine.blocks.layers import cost_of_layer, layer_name, plain_layer, structure
from engine.command.cli import parse
from engine.compute.macs import count_parameters
from engine.errors import UserError
from engine.onnx_file import write_onnx
from engine.onnx_timing import time_item
from ofa.layers import layer_specs
from ofa.space.arch import largest, smallest
from ofa.space.codes import decode, encode, sample_codes
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet
from predictors.latency.kit import distinct_layers, export_kit, network_name
from predictors.latency.model import LatencyModel, cross_validated, load_latency
from predictors.latency.table import networks_of, row_of_codes
from predictors.latency.timings import build_table, noise_complaint, noise_of, read_timings
from predictors.measure import Measure, middle_latency, spread_networks
from predictors.search.constraints import format_cost


@pytest.fixture(scope="module")
def slim_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space of eight blocks, for commands that time all of them."""
    path = tmp_path_factory.mktemp("space") / "slim.yaml"
    path.write_text("""
resolution: [8, 12]
stem: {width: [4], stride: 1, act: hard_swish}
stages:
  - {width: [8], depth: [1, 2, 3], kernel: [3, 5], expand: [2], stride: 2, se: true, act: hard_swish}
  - {width: [8], depth: [1, 2, 3], kernel: [3], expand: [1], stride: 1, act: relu}
head: {width: [16], expand: 2, act: swish}
""")
    return path


@pytest.mark.parametrize("granularity", ["stage", "block"])
def test_block_sum_is_the_sum_of_the_blocks_that_run(tiny: Space, granularity: str) -> None:
    space = Space.model_validate(tiny.model_dump() | {"granularity": granularity})
    rng = np.random.default_rng(0)
    blocks, codes = made_up_blocks(space, rng), sample_codes(space, 50, rng)
    wanted = []
    for row in codes:
        layers = layer_specs(space, decode(space, row), 5, 1)
        wanted.append(sum(blocks[structure(layer)][layer.size] for layer in layers))
    model = LatencyModel(made_up(space, codes[:0], np.zeros(0), blocks), space)
    np.testing.assert_allclose(model.predict(codes), wanted)


def test_networks_correct_the_sum_of_blocks(tiny: Space) -> None:
    rng = np.random.default_rng(0)
    blocks, codes = made_up_blocks(tiny, rng), sample_codes(tiny, 300, rng)
    base = LatencyModel(made_up(tiny, codes[:0], np.zeros(0), blocks), tiny).predict(codes)
    depth = codes[:, tiny.column_index["depth", 1]]
    truth = 0.8 * base + 0.5 + 0.3 * depth
    noisy = truth * rng.normal(1, 0.01, len(truth))
    noisy[3] *= 20  # something else ran on the device
    ten = LatencyModel(made_up(tiny, codes[:10], noisy[:10], blocks), tiny).predict(codes[100:])
    hundred = LatencyModel(made_up(tiny, codes[:100], noisy[:100], blocks), tiny).predict(codes[100:])
    errors = [float(np.mean(np.abs(p / truth[100:] - 1))) for p in (base[100:], ten, hundred)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.01 < errors[1]


def partial_table(tiny: Space) -> tuple[Space, LatencyTable]:
    """A space of four resolutions, and a table that has measured two of them: 0.01 ms a pixel and 1 ms."""
    space = Space.model_validate(tiny.model_dump() | {"resolution": (8, 12, 16, 20)})
    part = Space.model_validate(tiny.model_dump() | {"resolution": (8, 16)})
    blocks = {}
    for name, sizes in made_up_blocks(part, np.random.default_rng(0)).items():
        blocks[name] = {size: 0.01 * size**2 + 1 for size in sizes}
    table = made_up(space, np.zeros((0, len(space.columns)), np.uint8), np.zeros(0), blocks)
    return space, table.model_copy(update={"resolutions": (8, 16)})


def test_sizes_in_between_are_interpolated_and_others_are_never_allowed(tiny: Space) -> None:
    space, table = partial_table(tiny)
    model = LatencyModel(table, space)
    row = encode(space, smallest(space).model_copy(update={"resolution": 12}))
    pieces = layer_specs(space, decode(space, row), 5, 1)
    np.testing.assert_allclose(model.predict(row[None]), sum(0.01 * p.size**2 + 1 for p in pieces))
    above = encode(space, smallest(space).model_copy(update={"resolution": 20}))[None]
    assert model.predict(above) == model.bound(above) == np.inf
    assert model.resolutions == (8, 12, 16)
    assert model.notes()[0] == "latency table made up covers 8 to 16 px: only these are searched"
    whole = made_up(
        tiny,
        np.zeros((0, len(tiny.columns)), np.uint8),
        np.zeros(0),
        made_up_blocks(tiny, np.random.default_rng(0)),
    )
    assert not any("covers" in note for note in LatencyModel(whole, tiny).notes())


def test_other_devices_of_other_resolutions_cover_what_all_know(tiny: Space) -> None:
    """Not a number until now: their latencies were compared at resolutions that they do not know."""
    space, other = partial_table(tiny)
    rng = np.random.default_rng(1)
    codes = sample_codes(space, 40, rng)
    codes[:, 0] = rng.integers(1, 4, len(codes))
    ms = 2 * LatencyModel(other, space).predict(codes)
    new = made_up(space, codes, ms, {}).model_copy(update={"others": (other,)})
    model = LatencyModel(new, space)
    assert model.resolutions == (8, 12, 16)
    np.testing.assert_allclose(model.predict(codes), ms, rtol=0.01)


def test_nine_of_ten_new_networks_keep_the_bound(tiny: Space) -> None:
    rng = np.random.default_rng(0)
    blocks, codes = made_up_blocks(tiny, rng), sample_codes(tiny, 500, rng)
    base = LatencyModel(made_up(tiny, codes[:0], np.zeros(0), blocks), tiny).predict(codes)
    kept = []
    for _ in range(20):
        ms = (0.8 * base + 0.5) * np.exp(rng.normal(0, 0.1, len(base)))
        model = LatencyModel(made_up(tiny, codes[:25], ms[:25], blocks), tiny)
        kept.append(np.mean(ms[25:] <= model.bound(codes[25:])))
        assert model.margin is not None and 0.08 < model.margin < 0.3
    # The mere prediction is kept by half of them.
    assert 0.88 < np.mean(kept) < 0.96


def test_too_few_networks_give_no_margin(tiny: Space) -> None:
    rng = np.random.default_rng(0)
    blocks, codes = made_up_blocks(tiny, rng), np.unique(sample_codes(tiny, 30, rng), axis=0)
    for count in (0, 9, 10):
        ms = rng.uniform(1, 2, count)
        model = LatencyModel(made_up(tiny, codes[:count], ms, blocks), tiny)
        assert (model.margin is None) == (count < 10)
        assert (cross_validated(model.table, tiny, "residual") is None) == (count < 10)
        if count < 10:
            assert np.array_equal(model.bound(codes), model.predict(codes))
            assert f"has {count} whole networks, and a margin needs 10" in model.notes()[-1]
        else:
            assert "9 of 10 subnets take at most" in model.notes()[-1]


def test_tables_that_do_not_fit_are_refused(tiny: Space, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = made_up(tiny, sample_codes(tiny, 0, rng), np.zeros(0), made_up_blocks(tiny, rng)).model_dump(
        mode="json"
    )
    path = tmp_path / "t.json"

    def write(**changes: object) -> Path:
        path.write_text(json.dumps(table | changes))
        return path

    assert load_latency(write(), tiny, 5, 1).predict(encode(tiny, largest(tiny))[None]) > 0
    for changes, space, sentence in (
        ({"version": 1}, tiny, "not a latency table of version 2: its version is 1; measure again"),
        ({}, load_space("digits"), "was measured for space 'tiny', whose choices are not those of 'digits'"),
        ({"classes": 7}, tiny, "is for 7 classes and 1 input channels, not for 5 and 1"),
        ({"blocks": {}}, tiny, "has no blocks and only 0 networks"),
        ({"surprise": 1}, tiny, "there is no field 'surprise'"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_latency(write(**changes), space, 5, 1)


NOTE10 = ["160_lookup_table.yaml", "192_lookup_table.yaml", "224_lookup_table.yaml"]


def test_published_table_of_a_phone(nas_data: Path, tmp_path: Path) -> None:
    files = ",".join(str(nas_data / "note10_lut" / name) for name in NOTE10)
    words = [
        "--space",
        "ofa_mbv3_w1.2",
        "--device-name",
        "note10",
        "--out",
        str(tmp_path / "n.json"),
        "--import-yaml",
        files,
    ]
    assert parse(Measure, words).execute() == 0
    space = load_space("ofa_mbv3_w1.2")
    model = load_latency(tmp_path / "n.json", space, 1000, 3)
    assert model.table.resolutions == (160, 192, 224)
    arch = smallest(space).model_copy(update={"resolution": 224})
    import yaml

    known = yaml.safe_load((nas_data / "note10_lut" / NOTE10[2]).read_text())
    by_hand = ["Conv-input:224x224x3-output:112x112x24", "AvgPool2D-input:7x7x1152-output:1x1x1152"]
    by_hand += [
        "Conv_1-input:7x7x192-output:7x7x1152",
        "Conv_2-input:1x1x1152-output:1x1x1536",
        "Logits-input:1x1x1536-output:1000",
    ]
    maps = ["112x112x24", "112x112x24", "56x56x32", "28x28x48", "14x14x96", "14x14x136", "7x7x192"]
    flags = [(0, 0), (0, 0), (1, 0), (0, 1), (1, 1), (1, 1)]
    for i, (se, hs) in enumerate(flags):
        inp, out = int(maps[i].split("x")[2]), int(maps[i + 1].split("x")[2])
        stride = int(maps[i].split("x")[0]) // int(maps[i + 1].split("x")[0])
        hidden = inp if i == 0 else 3 * inp
        widths = f"input:{maps[i]}-output:{maps[i + 1]}-expand:{hidden}"
        by_hand.append(
            f"expanded_conv-{widths}-kernel:3-stride:{stride}-idskip:{int(i == 0)}-se:{se}-hs:{hs}"
        )
        if i:
            by_hand.append(
                f"expanded_conv-input:{maps[i + 1]}-output:{maps[i + 1]}-expand:{3 * out}-kernel:3-stride:1-"
                f"idskip:1-se:{se}-hs:{hs}"
            )
    wanted = sum(known[key]["mean"] for key in by_hand)
    assert model.predict(encode(space, arch)[None])[0] == pytest.approx(wanted)
    assert model.resolutions == tuple(range(160, 225, 4))
    assert model.predict(encode(space, smallest(space))[None]) == np.inf
    assert model.notes()[0] == "latency table note10 covers 160 to 224 px: only these are searched"
    words[1] = "ofa_mbv3"
    sentence = (
        "has no resolution at which space 'ofa_mbv3' is complete.*; it is a table for --space ofa_mbv3_w1.2"
    )
    with pytest.raises(UserError, match=sentence):
        parse(Measure, words).execute()


@pytest.mark.slow
def test_a_joined_network_is_the_exported_subnet(tiny: Space, tmp_path: Path) -> None:
    row = sample_codes(tiny, 1, np.random.default_rng(3))
    pieces = layer_specs(tiny, decode(tiny, row[0]), 5, 1)
    export_kit(tiny, pieces[:1], row, 5, 1, tmp_path / "kit", lambda note: None)
    joined = onnx.load(tmp_path / "kit" / f"{network_name(row[0])}.onnx")
    onnx.checker.check_model(str(tmp_path / "kit" / f"{network_name(row[0])}.onnx"))
    net = Subnet(tiny, decode(tiny, row[0]), 5, 1).eval()
    side = pieces[0].size
    write_onnx(net, torch.zeros(2, 1, side, side), tmp_path / "net.onnx", {})
    exported = onnx.load(tmp_path / "net.onnx")
    assert [node.op_type for node in joined.graph.node] == [node.op_type for node in exported.graph.node]
    weights = [
        sorted(tuple(t.dims) for t in m.graph.initializer if t.data_type == 1 and t.dims)
        for m in (joined, exported)
    ]
    assert len(weights[0]) >= len(
        weights[1]
    )  # the exporter stores equal tensors once; here each has its own place
    assert set(weights[0]) == set(weights[1])
    session = ort.InferenceSession(
        str(tmp_path / "kit" / f"{network_name(row[0])}.onnx"), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.ones((1, 1, side, side), np.float32)})
    assert logits.shape == (1, 5)
    assert np.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attentive_nas", "ofa_resnet50"])
def test_pieces_of_other_spaces_run(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    row = encode(space, smallest(space))
    pieces = list(dict.fromkeys(layer_specs(space, decode(space, row), 5, 3)))
    kinds = {
        (type(p), getattr(p, "projects", None), getattr(p, "stride", None), getattr(p, "se", None)): p
        for p in pieces
    }
    chosen = list(kinds.values())
    export_kit(space, chosen, row[None][:0], 5, 3, tmp_path, lambda note: None)
    for item in json.loads((tmp_path / "manifest.json").read_text())["items"]:
        wall, cpu = time_item(tmp_path / item["file"], item["shape"], 1, 0)
        assert len(wall) == len(cpu) >= 8
    for piece in pieces:
        assert count_parameters(plain_layer(piece, space.bn_eps)) == cost_of_layer(piece)[1]


@pytest.mark.slow
def test_measure_export_run_and_import(
    slim_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = load_space(str(slim_yaml))
    common = [
        "--space",
        str(slim_yaml),
        "--classes",
        "5",
        "--channels",
        "1",
        "--resolutions",
        "8",
        "--whole",
        "16",
    ]
    kit = tmp_path / "kit"
    assert parse(Measure, [*common, "--export-kit", str(kit)]).execute() == 0
    first = {path.name: path.read_bytes() for path in kit.glob("*.onnx")}
    assert parse(Measure, [*common, "--export-kit", str(kit)]).execute() == 0
    assert first == {path.name: path.read_bytes() for path in kit.glob("*.onnx")}
    device = tmp_path / "device"
    shutil.copytree(kit, device)  # the script needs nothing of this project
    script = [sys.executable, "-I", str(device / "bench.py"), "--rounds", "4", "--seconds", "0.002"]
    subprocess.run(script, cwd=device, check=True, capture_output=True)
    csv = device / "latency.csv"
    lines = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(lines[:20]) + lines[20][:17])  # killed in the middle of a line
    subprocess.run(script, cwd=device, check=True, capture_output=True)
    assert len(csv.read_text().splitlines()) == len(lines)
    table, _ = build_table(read_timings(csv), "test", slim, 5, 1)
    codes, ms = networks_of(table)
    assert table.resolutions == (8,)
    assert table.clock == "cpu"
    assert len(codes) == len(spread_networks(slim, (8,), 16)) == len(ms)
    predicted = LatencyModel(table, slim, "affine").predict(codes)
    assert 0.2 < np.median(predicted / ms) < 5
    capsys.readouterr()
    out = tmp_path / "t.json"
    status = parse(
        Measure, [*common, "--import-kit", str(csv), "--device-name", "test", "--out", str(out)]
    ).execute()
    said = capsys.readouterr().out
    assert "split-half reliability" in said
    assert (
        (status == 0) == out.exists() == ("not saved" not in said)
    )  # which, depends on what else this machine does


@pytest.mark.slow
def test_measure_here_and_clean_up(slim_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy this machine is.
    monkeypatch.setattr("predictors.measure.noise_complaint", lambda noise: "")
    words = ["--space", str(slim_yaml), "--resolutions", "8", "--whole", "10", "--no-blocks"]
    words += ["--rounds", "2", "--seconds", "0"]
    words += ["--device-name", "here", "--out", str(tmp_path / "here.json")]
    assert parse(Measure, words).execute() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]
    values = json.loads((tmp_path / "here.json").read_text())
    assert values["runtime"].startswith("onnxruntime")
    assert len(values["networks"]) == 10
    slim = load_space(str(slim_yaml))
    times = [network["ms"] for network in values["networks"]]
    assert middle_latency(read_table(tmp_path / "here.json"), slim) == np.median(times)


def write_csv(path: Path, rows: list[tuple[str, int, float]]) -> Path:
    path.write_text("name,round,wall_p50\n" + "".join(f"{name},{turn},{ms}\n" for name, turn, ms in rows))
    return path


def test_noise_is_noticed_and_not_saved(
    tiny_yaml: Path, tiny: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pieces = distinct_layers(tiny, 1000, 3)
    for spread, saved in ((0.01, True), (0.8, False)):
        rows = [
            (layer_name(p), turn, p.size**2 * float(np.exp(rng.normal(0, spread))))
            for p in pieces
            for turn in range(6)
        ]
        path, out = write_csv(tmp_path / "x.csv", rows), tmp_path / f"{saved}.json"
        flags = ["--space", str(tiny_yaml), "--device-name", "x"]
        flags += ["--import-kit", str(path), "--out", str(out)]
        assert parse(Measure, flags).execute() == (0 if saved else 1)
        assert out.exists() == saved
    said = capsys.readouterr().out
    assert "not saved: of the blocks, two halves of the rounds differ by" in said
    # A space is measured for many classes, which a run need not have.
    assert said.startswith(
        "measured for 1000 classes and 3 input channels (--classes, --channels); to select"
    )
    limit = format_cost("latency", middle_latency(read_table(tmp_path / "True.json"), tiny), 2)
    assert f"next: python -m predictors.select --latency {limit} --latency-table" in said
    assert noise_complaint(noise_of([{0: 1.0}, {0: 2.0}]))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("nonsense@8", 0, 1.0), "such as nonsense@8"),
        (("net-0102", 0, 1.0), "such as net-0102"),
        (("overhead", 0, float("nan")), "line 2: round and wall_p50 must be numbers"),
        (("overhead", 0, 0.0), "more than 0 ms"),
    ],
)
def test_timings_of_something_else_are_refused(
    row: tuple[str, int, float], sentence: str, tiny: Space, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        build_table(read_timings(write_csv(tmp_path / "x.csv", [row])), "x", tiny, 5, 1)


@pytest.mark.slow
def test_transfer_from_other_devices(nas_data: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
    from latency_transfer import read, table_of

    space = load_space("ofa_mbv3")
    codes, latency = read(nas_data / "latency" / "ofa_mbv3.csv.gz", space)
    names = [name for name in latency if name.endswith("_1")]
    order = np.random.default_rng(1).permutation(len(codes))
    held, known = order[:1000], order[1000:]
    whole = {name: table_of(name, space, codes[known], latency[name][known]) for name in names}
    for count, wanted in ((10, 0.62), (100, 0.67)):
        taus = []
        for name in names:
            others = tuple(table for other, table in whole.items() if other != name)
            few = known[:count]
            model = LatencyModel(table_of(name, space, codes[few], latency[name][few], others), space)
            taus.append(kendalltau(model.predict(codes[held]), latency[name][held]).statistic)
        assert np.mean(taus) > wanted


@pytest.mark.parametrize("codes", ["ff", "zz", "0", "", "010", "00" * 20, "ff" * 13, "01"])
def test_codes_of_no_architecture_are_refused(codes: str, tiny: Space, tmp_path: Path) -> None:
    """In a table of this device, in one of another device, and in timings."""
    rows = np.unique(sample_codes(tiny, 3, np.random.default_rng(0)), axis=0)
    table = made_up(tiny, rows, np.ones(len(rows)), made_up_blocks(tiny, np.random.default_rng(0)))
    good = table.model_dump(mode="json")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(good))
    assert load_latency(path, tiny, table.classes, table.channels)
    bad = good | {"networks": [*good["networks"], {"codes": codes, "ms": 1.0}]}
    for values in (bad, good | {"others": [bad]}):
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="codes"):
            load_latency(path, tiny, table.classes, table.channels)
    (tmp_path / "a.csv").write_text(f"name,round,wall_p50\nnet-{codes},0,1\n")
    with pytest.raises(UserError, match="such as net-"):
        build_table(read_timings(tmp_path / "a.csv"), "phone", tiny, 10, 3)


def test_rows_of_codes_are_those_of_the_space(tiny: Space) -> None:
    for row in sample_codes(tiny, 200, np.random.default_rng(0)):
        found = row_of_codes(row.tobytes().hex(), tiny)
        assert found is not None and np.array_equal(found, row)
