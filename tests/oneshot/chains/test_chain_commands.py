"""From a measured table to a file: measure, search for milliseconds, retrain, export; and what is refused."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from chains import SMALL_CHAIN

from engine.blocks.latency_table import read_table
from engine.blocks.layers import layer_name, structure
from engine.command.cli import parse
from engine.errors import UserError
from engine.run import read_json, read_lines
from export.onnx import Export
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.layers import ImageShape, chain_specs, distinct_specs
from oneshot.chains.space import ChainSpace, load_chain_space
from oneshot.retrain import Retrain
from oneshot.search import Search
from oneshot.search_loop import SearchLoop
from oneshot.spaces.read_genotype import find_genotype
from oneshot.spaces.search_space import find_search_space
from oneshot.trained import TrainedNetwork
from predictors.measure import Measure

IMAGE = ImageShape(8, 1, 10)
QUICK = ("--epochs", "2", "--batch-size", "128", "--device", "cpu")


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "small_chain.yaml"
    path.write_text(SMALL_CHAIN)
    return path


def measure(space_file: Path, *flags: str) -> int:
    usual = ("--space", str(space_file), "--classes", "10", "--channels", "1", "--whole", "12")
    return parse(Measure, [*usual, *flags]).execute()


@pytest.fixture(scope="module")
def table(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a made-up device, on which a layer takes as long as its name, and a chain a quarter more."""
    folder = tmp_path_factory.mktemp("device")
    assert measure(space_file, "--export-kit", str(folder / "kit")) == 0
    items = json.loads((folder / "kit" / "manifest.json").read_text())["items"]
    space = load_chain_space(str(space_file))
    layers = {structure(layer) for layer in distinct_specs(space, IMAGE)}
    assert {path.stem for path in (folder / "kit").glob("*.onnx")} >= layers
    assert "inverted-12-12-12-k3-s1-expands-residual-g2-relu" in layers
    lines = ["name,round,wall_p50"]
    for turn in range(4):
        for item in items:
            lines.append(f"{item['name']},{turn},{milliseconds(space, item['name']) + turn / 100}")
    (folder / "latency.csv").write_text("\n".join(lines) + "\n")
    out = folder / "table.json"
    flags = ("--import-kit", str(folder / "latency.csv"), "--device-name", "made-up", "--out", str(out))
    assert measure(space_file, *flags) == 0
    return out


def milliseconds(space: ChainSpace, name: str) -> float:
    if not name.startswith("net-"):
        return len(name) / 10 if name != "overhead" else 0.01
    found = space.chain_of_codes(bytes.fromhex(name.removeprefix("net-")))
    assert found is not None
    layers = chain_specs(space, found[0], IMAGE._replace(size=found[1]))
    return 1.25 * sum(milliseconds(space, layer_name(layer)) for layer in layers)


def test_files_of_grouped_blocks_run(space_file: Path, tmp_path: Path) -> None:
    measure(space_file, "--export-kit", str(tmp_path))
    (path, *_) = sorted(tmp_path.glob("inverted-8-*-s2-*g2-relu.onnx"))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: torch.zeros(1, 8, 8, 8).numpy()})
    assert y.shape == (1, 12, 4, 4)


def search(out: Path, space_file: Path, *flags: str) -> int:
    return parse(Search, [*QUICK, "--space", str(space_file), "--out", str(out), *flags]).execute()


@pytest.mark.slow
def test_from_a_table_to_a_file(
    space_file: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_table(table)
    assert len(whole.networks) == 12 and whole.resolutions == (8,)
    found, trained = tmp_path / "found", tmp_path / "trained"
    aimed = ("--target", "27ms", "--latency-table", str(table))
    assert search(found, space_file, "--method", "gdas", *aimed) == 0
    facts = read_json(found / "outcome.json")["target"]
    assert facts["of"] == "latency" and 25.65 <= facts["found"] <= 27  # within 5%
    said = capsys.readouterr().out
    assert "target 27 ms: found" in said and "expected cost of the search" in said
    chain = find_genotype(str(found))
    assert isinstance(chain, ChainGenotype)
    assert {path.name for path in found.iterdir()} >= {"cell.svg", "cell.png", "alphas.png", "genotype.json"}

    # What was found does not need the file of its space any more.
    quick = ("--epochs", "1", "--batch-size", "64", "--device", "cpu")
    assert parse(Retrain, ["--genotype", str(found), "--out", str(trained), *quick]).execute() == 0
    assert "chain of space small_chain" in capsys.readouterr().out
    assert TrainedNetwork(trained, torch.device("cpu")).cost() == chain.cost(IMAGE)
    assert parse(Export, ["--run", str(trained)]).execute() == 0
    assert "equal" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_with_a_target_resumes_bit_for_bit(
    space_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed = ("--method", "proxyless", "--method.warmup-epochs", "0", "--method.architecture-every", "2")
    aimed += ("--target", "45k")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert search(whole, space_file, *aimed) == 0
    original, count = SearchLoop.update, 0

    def update(self: SearchLoop, train: Any, valid: Any) -> None:
        nonlocal count
        count += 1
        if count == 6:  # in the middle of the search; a shell's background jobs ignore SIGINT
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, train, valid)

    monkeypatch.setattr(SearchLoop, "update", update)
    assert search(parts, space_file, *aimed) != 0
    assert search(parts, space_file, *aimed, "--resume") == 0
    states: list[Any] = [torch.load(path / "state.pt", weights_only=True) for path in (whole, parts)]
    assert torch.equal(states[0]["target"], states[1]["target"]) and states[0]["target"] != 0
    for one, other in zip(states[0]["alphas"], states[1]["alphas"], strict=True):
        assert torch.equal(one, other)
    assert read_json(whole / "outcome.json") == read_json(parts / "outcome.json")
    assert [p for p in read_lines(whole / "metrics.jsonl") if "genotype" in p]


def test_a_space_of_ones_own_for_small_images_has_settings_for_these(
    space_file: Path, tmp_path: Path
) -> None:
    own = parse(Search, ["--space", str(space_file), "--method", "proxyless"])
    assert own.method == parse(Search, ["--space", "chain32", "--method", "proxyless"]).method
    large = tmp_path / "large.yaml"
    large.write_text(SMALL_CHAIN.replace("resolution: 8", "resolution: 224"))
    assert parse(Search, ["--space", str(large), "--method", "proxyless"]).method.batch_size == 256
    # DrNAS's stages and partial channels are for cells.
    for space in (str(space_file), str(large), "chain32", "fbnet"):
        drnas = parse(Search, ["--space", space, "--method", "drnas"]).method
        assert drnas.refuse(find_search_space(space)) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cells", "3"), "--cells is for cells"),
        (("--channels", "16"), "--channels is for cells"),
        (("--target", "1G"), "costs 1G MACs; --target can be"),
        (("--target", "15ms"), "Milliseconds need a latency table; measure one with"),
        (("--target", "soon"), "'soon' is not a target; write 15ms, 100M for MACs"),
        (("--target", "45k", "--penalties", "cost"), "leave out --penalties cost"),
        (("--target", "45k", "--method", "random_ws"), "has no step of the architecture that --target"),
        (
            ("--method", "pc_darts", "--method.warmup-epochs", "0"),
            "weights of edges are for cells",
        ),
        (
            ("--method", "p_darts", "--method.stages", "[]", "--method.warmup-epochs", "0"),
            "it deepens networks of cells of images",
        ),
        (("--data", "grammar"), "do not go together; text is for space recurrent"),
        (("--table", "x.csv"), "table holds results of NAS-Bench-201"),
        (("--space", "darts", "--target", "45k"), "--target is for chains of blocks such as"),
        (("--space", "chain23"), "There is no search space 'chain23'"),
    ],
)
def test_what_has_no_meaning_is_refused(
    flags: tuple[str, ...], said: str, space_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        search(tmp_path / "x", space_file, *flags)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()
