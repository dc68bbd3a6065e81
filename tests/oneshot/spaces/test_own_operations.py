"""A space on operations of one's own: the example of docs/search.md, and what is refused."""

import re
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from engine.run import read_json
from oneshot.networks.final_nasbench201 import FinalNasBench201Network
from oneshot.retrain import Retrain
from oneshot.search import Search
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import NetworkShape, edge_costs
from oneshot.spaces.genotype import Cell, Genotype
from oneshot.spaces.own_operations import build_own_operation, find_constructor, load_module
from oneshot.spaces.read_genotype import find_genotype
from oneshot.trained import TrainedNetwork

PAGE = Path(__file__).parents[3] / "docs" / "search.md"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The files of the example, in the working folder."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## Operations of your own") : text.index("## A method of your own")]
    (yaml,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_space.yaml").write_text(yaml)
    (tmp_path / "my_operations.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "my_space.yaml"


def genotype(space: str, operation: str) -> Genotype:
    edges = [[(operation, source) for source in range(node)] for node in (1, 2, 3)]
    return Genotype(space=find_space(space).in_genotypes, cells={"cell": Cell(nodes=edges, output=(3,))})  # type: ignore[arg-type]


def test_costs_are_torchs_own(space: str) -> None:
    found = genotype(space, "shifted")
    network = FinalNasBench201Network(found, 8, 2, 10).eval()
    shape = NetworkShape(8, 2, 10, 32)
    assert edge_costs(find_space(space), "macs", shape).total(found) == count_macs(
        network, torch.zeros(1, 3, 32, 32)
    )
    assert edge_costs(find_space(space), "params", shape).total(found) == count_parameters(network)
    # Built-in operations cost what they always cost.
    plain = genotype(space, "nor_conv_3x3")
    wanted = edge_costs(find_space("nasbench201"), "macs", shape).total(
        genotype("nasbench201", "nor_conv_3x3")
    )
    assert edge_costs(find_space(space), "macs", shape).total(plain) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("method", ["darts", "gdas"])
def test_the_example_searches_retrains_and_is_opened(space: str, method: str, tmp_path: Path) -> None:
    small = ["--cells", "1", "--channels", "4", "--device", "cpu", "--evaluate-images", "50"]
    search = ["--space", space, "--method", method, "--epochs", "1", "--batch-size", "64", "--out", "own"]
    assert parse(Search, [*search, *small]).execute() == 0
    assert read_json(tmp_path / "own" / "genotype.json")["space"]["base"] == "nasbench201"
    assert set(find_space(space).operations) == {"none", "skip_connect", "nor_conv_3x3", "shifted"}
    (tmp_path / "cell.json").write_text(genotype(space, "shifted").model_dump_json())
    flags = ["--genotype", "cell.json", "--network.channels", "4", "--network.cells", "1", "--epochs", "1"]
    assert parse(Retrain, [*flags, "--out", "trained", "--device", "cpu"]).execute() == 0
    trained = TrainedNetwork(tmp_path / "trained", torch.device("cpu"))
    assert trained.cost()[1] == count_parameters(trained.network)
    assert trained.accuracy("val") > 0


def test_a_genotype_needs_no_file_of_its_space_on_another_machine(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = genotype(space, "shifted").model_dump_json()
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    (tmp_path / space).unlink()
    module = (tmp_path / "my_operations.py").rename(tmp_path / "away.txt")
    find_constructor.cache_clear()
    load_module.cache_clear()
    found = find_genotype(written)
    assert isinstance(found, Genotype)
    with pytest.raises(
        UserError,
        match=r"^There is no constructor .* copy my_operations\.py into the current folder, or put it on",
    ):
        FinalNasBench201Network(found, 4, 1, 10)
    (there / "my_operations.py").write_text("")
    with pytest.raises(UserError, match=r"there/my_operations\.py' has no 'Shifted'\); define it there, or"):
        FinalNasBench201Network(found, 4, 1, 10)
    load_module.cache_clear()
    module.rename("my_operations.py")
    FinalNasBench201Network(found, 4, 1, 10)


@pytest.mark.slow
def test_on_the_graph_of_darts_at_both_strides(space: str, tmp_path: Path) -> None:
    (tmp_path / "on_darts.yaml").write_text(
        "base: darts\noperations:\n  skip_connect:\n  sep_conv_3x3:\n  shifted: my_operations:Shifted\n"
    )
    flags = [
        "--space",
        "on_darts.yaml",
        "--cells",
        "3",
        "--channels",
        "4",
        "--epochs",
        "1",
        "--batch-size",
        "64",
    ]
    assert (
        parse(Search, [*flags, "--device", "cpu", "--evaluate-images", "50", "--out", "own"]).execute() == 0
    )
    found = read_json(tmp_path / "own" / "genotype.json")
    assert set(found["cells"]) == {"normal", "reduce"}


def test_mistakes_are_sentences(space: str, tmp_path: Path) -> None:
    def refused(operations: str, words: str) -> None:
        (tmp_path / "bad.yaml").write_text(f"base: nasbench201\noperations:\n  skip_connect:\n{operations}")
        with pytest.raises(UserError, match=words):
            find_space("bad.yaml")

    refused("  shifty:\n", "operation 'shifty' needs a constructor")
    refused("  shifty: my_operations:Nothing\n", "There is no constructor")
    refused("  nor_conv_1x1: my_operations:Shifted\n", "cannot be called 'nor_conv_1x1'")
    refused("  a.b: my_operations:Shifted\n", "cannot be called 'a.b'")
    refused("  keys: my_operations:Shifted\n", "cannot be called 'keys'")
    (tmp_path / "broken.py").write_text("x = nowhere\n")
    refused("  broken: broken:Shifted\n", "cannot be imported: NameError: name 'nowhere' is not defined")
    (tmp_path / "on_darts.yaml").write_text("base: darts\noperations:\n  none:\n  skip_connect:\n")
    with pytest.raises(UserError, match="all reduction cells"):
        parse(Search, ["--space", "on_darts.yaml", "--cells", "2"])


WRONG = """
from torch import nn

def Half(channels, stride):
    return nn.AvgPool2d(2)

def Number(channels, stride):
    return 3

class Pair(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()

    def forward(self, x):
        return x, x

class Misspelt(Pair):
    def forward(self, x):
        return y
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Half", r"makes \(2, 4, 4, 4\) of \(2, 4, 8, 8\)"),
        ("Pair", r"makes a tuple of \(2, 4, 8, 8\)"),
        ("Number", "'int' object has no attribute 'eval'"),
        ("Misspelt", "NameError: name 'y' is not defined"),
    ],
)
def test_a_wrong_operation_is_a_sentence(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    with pytest.raises(UserError, match=words):
        build_own_operation(f"{tmp_path / 'wrong.py'}:{name}", 4, 1)
