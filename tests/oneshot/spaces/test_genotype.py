"""Genotypes: published ones by name, every form that reference codes write, and sentences about what is
wrong."""

import json
from pathlib import Path

import pytest
import yaml

from engine.errors import UserError
from engine.run import write_json
from oneshot.networks.final import FinalNetwork
from oneshot.spaces.genotype import Cell, Genotype
from oneshot.spaces.read_genotype import find_genotype, published_genotypes

DARTS_V2 = (  # as the DARTS code prints it
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', "
    "2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
RECURRENT = (
    "Genotype(recurrent=[('sigmoid', 0), ('relu', 1), ('relu', 1), ('identity', 1), ('tanh', 2), ('sigmoid', "
    "5), ('tanh', 3), "
    "('relu', 5)], concat=range(1, 9))"
)
SKIPS = [("skip_connect", 0), ("skip_connect", 1)]


def test_published_cells_are_valid_and_found_by_name() -> None:
    assert len(published_genotypes()) == 17
    for name, entry in published_genotypes().items():
        genotype = find_genotype(name.lower())
        assert "arXiv:" in entry["source"]
        edges = entry["recurrent"] if genotype.space == "recurrent" else [*entry["normal"], *entry["reduce"]]
        assert [
            list(edge) for cell in genotype.cells.values() for node in cell.nodes for edge in node
        ] == edges


def test_every_form_is_the_same_genotype(tmp_path: Path) -> None:
    wanted = find_genotype("DARTS_V2")
    assert wanted.cells["normal"].nodes[3] == (("skip_connect", 0), ("dil_conv_3x3", 2))
    flat = {name: value for name, value in published_genotypes()["DARTS_V2"].items() if name != "source"}
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(flat))
    write_json(tmp_path / "ours.json", wanted.model_dump(mode="json"))
    positional = DARTS_V2
    for name in ("normal=", "normal_concat=", "reduce=", "reduce_concat="):
        positional = positional.replace(name, "")
    spellings = DARTS_V2.replace("dil_conv_3x3", "dil_sepc_3x3").replace("sep_conv_3x3", "dua_sepc_3x3")
    weighted = json.dumps(flat | {"normal": [[*edge, 0.125] for edge in flat["normal"]]})
    (tmp_path / "search.log").write_text(
        f"genotype = {DARTS_V2.replace('sep_conv_3x3', 'sep_conv_5x5')}\n10:00 genotype = {DARTS_V2}\n"
    )
    files = [str(tmp_path / name) for name in ("flat.json", "flat.yaml", "ours.json", "search.log")]
    for text in [
        DARTS_V2,
        positional,
        spellings,
        weighted,
        json.dumps(flat),
        wanted.model_dump_json(),
        *files,
    ]:
        assert find_genotype(text) == wanted
    assert find_genotype(RECURRENT) == find_genotype("DARTS_V2_recurrent")


ASHA200 = (  # of GAEA's code: found by random search with early stopping, with edges that are none
    "ASHA200 = Genotype(\n    normal=[('skip_connect', 1), ('dil_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('none', 1), ('max_pool_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0)],\n"
    "    normal_concat=[2, 3, 4, 5],\n    reduce=[('max_pool_3x3', 1), ('avg_pool_3x3', 0), "
    "('sep_conv_5x5', 1), ('skip_connect', 2), ('max_pool_3x3', 3), ('none', 1), ('skip_connect', 0), "
    "('sep_conv_5x5', 4)],\n    reduce_concat=[2, 3, 4, 5],\n)"
)


def test_the_forms_of_autodl_projects_are_read() -> None:
    wanted = find_genotype("DARTS_V2")
    nodes = {
        kind: [tuple(tuple(e) for e in node) for node in cell.nodes] for kind, cell in wanted.cells.items()
    }
    normal, reduce = nodes["normal"], nodes["reduce"]
    fields = f"normal_concat=[2, 3, 4, 5], reduce={reduce}, reduce_concat=[2, 3, 4, 5]"
    assert find_genotype(f"Genotype(normal={normal}, {fields}, connectN=None, connects=None)") == wanted
    positional = f"Genotype({normal}, [2, 3, 4, 5], {reduce}, [2, 3, 4, 5], None, None)"
    assert find_genotype(positional) == wanted
    weighted = [tuple((*edge, 0.125) for edge in node) for node in normal]
    printed = {"normal": weighted, "normal_concat": [2, 3, 4, 5], "reduce": reduce}
    assert find_genotype(str(printed | {"reduce_concat": [2, 3, 4, 5]})) == wanted
    string = "|none~0|+|avg_pool_3x3~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
    assert find_genotype(f"Structure(4 nodes with {string})") == find_genotype(string)


def test_edges_that_are_none_are_read() -> None:
    found = find_genotype(ASHA200)
    assert found.cells["normal"].nodes[2] == (("none", 1), ("max_pool_3x3", 0))
    FinalNetwork(found, channels=4, cells=3)


def test_any_number_of_edges() -> None:
    nodes = [[("max_pool_3x3", 0)], [*SKIPS, ("sep_conv_3x3", 2)], []]
    cell = {"normal": nodes, "normal_concat": [2, 3], "reduce": SKIPS, "reduce_concat": [2]}
    assert find_genotype(json.dumps(cell)).cells["normal"].nodes[1][2] == ("sep_conv_3x3", 2)
    sparse = (
        "Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('skip_connect', 2, 1), "
        "('max_pool_3x3', 4, 0)], "
    )
    sparse += "normal_concat=range(2, 6), reduce=[('skip_connect', 2, 0)], reduce_concat=range(2, 6))"
    normal = find_genotype(sparse).cells["normal"]
    assert [len(node) for node in normal.nodes] == [3, 0, 1, 0]
    assert normal.output == (2, 4), "FairDARTS leaves nodes without edges out"


def test_the_folder_of_a_finished_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder; train one with python -m oneshot.search"):
        find_genotype(str(tmp_path))
    (tmp_path / "config.yaml").write_text("{}")
    write_json(tmp_path / "genotype.json", find_genotype("PDARTS").model_dump(mode="json"))
    with pytest.raises(UserError, match="is not finished"):
        find_genotype(str(tmp_path))
    (tmp_path / "DONE").write_text("genotype.json\n")
    assert find_genotype(str(tmp_path)) == find_genotype("PDARTS")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DARTS_V2[:-1] + ", connectN=2, connects=None)", "'connectN' is 2; only cells where it is None"),
        ("DARTS_V3", "did you mean 'DARTS_V2'?"),
        ("{", "not valid JSON"),
        ("{}", "'cells' is missing"),
        (DARTS_V2[:-1], "cannot be read"),
        (DARTS_V2.replace("range(2, 6)", "exit()"), "cannot be read"),
        (
            DARTS_V2.replace("skip_connect", "skip_conect"),
            "'skip_conect' is not an operation; did you mean 'skip_connect'?",
        ),
        (DARTS_V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)"), "node 5 cannot read state 5"),
        (DARTS_V2.replace("range(2, 6)", "range(2, 7)"), "must name states from 0 to 5"),
        (DARTS_V2.replace(", ('dil_conv_3x3', 2)", ""), "2 a node"),
        (DARTS_V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', '2')"), "must be a list of"),
        (
            DARTS_V2.replace("reduce_concat", "reduce_conct"),
            "there is no field 'reduce_conct'; did you mean 'reduce_concat'?",
        ),
        ('{"normal": 3, "normal_concat": [2], "reduce": [], "reduce_concat": [2]}', "must be a list of"),
        ('{"space": "dart", "cells": {}}', "did you mean 'darts'?"),
        (
            '{"space": "recurrent", "cells": {"normal": {"nodes": [], "output": [0]}}}',
            "has the cells recurrent, not normal",
        ),
    ],
)
def test_mistakes_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        find_genotype(text)
    assert said in str(caught.value)
    assert str(caught.value).count(". ") == 0 and "\n" not in str(caught.value)


def test_a_file_that_is_no_genotype(tmp_path: Path) -> None:
    for content, said in (
        (b"\xff\xfe", "cannot be read"),
        (b"a: [", "neither JSON nor YAML"),
        (b"hello", "holds str"),
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match=said):
            find_genotype(str(tmp_path / "file"))


def test_json_round_trip() -> None:
    genotype = Genotype(
        space="nasbench201",
        cells={"cell": Cell(nodes=((("none", 0),), (SKIPS[0],), (SKIPS[1],)), output=(3,))},
    )
    assert find_genotype(genotype.model_dump_json()) == genotype
