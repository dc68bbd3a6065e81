"""NAS-Bench-201: strings, codes, indices and genotypes are the same thing, and tables are read right or
refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from engine.command.cli import parse
from engine.errors import UserError
from oneshot.nasbench201.__main__ import Compare
from oneshot.nasbench201.codes import (
    CELLS,
    all_codes,
    all_costs,
    decode_cell,
    encode_cell,
    find_cell,
    index_of,
    parse_string,
    to_string,
)
from oneshot.nasbench201.table import DATASETS, NETWORKS, AccuracyTable
from oneshot.spaces.genotype import Cell, Genotype

FIRST = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
SECOND = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def rows() -> list[list[str]]:
    """A table whose accuracies tell the index: 0.001 times it, and half of that for validation."""
    cells = [to_string(decode_cell(code)) for code in all_codes()]
    return [
        ["arch", "cifar10-test", "cifar10-val", "comment"],
        *([c, f"{i / 1000}", f"{i / 2000}", ""] for i, c in enumerate(cells)),
    ]


def write(path: Path, lines: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    head, *body = rows()
    return write(tmp_path_factory.mktemp("table") / "table.csv", [head, *reversed(body)])


def test_the_official_order_needs_no_table() -> None:
    assert to_string(find_cell("0")) == FIRST
    assert to_string(find_cell("1")) == SECOND
    assert index_of(parse_string(BEST)) == 9930
    assert len(np.unique(all_codes(), axis=0)) == CELLS
    assert (index_of(all_codes()) == np.arange(CELLS)).all()


def test_the_official_order_is_that_of_the_tables(nas_data: Path) -> None:
    with (nas_data / "nasbench201" / "accuracy_200_epochs.csv").open(newline="") as file:
        cells = [row["ArchitectureString"] for row in csv.DictReader(file)]
    assert cells == [to_string(decode_cell(code)) for code in all_codes()]


@pytest.mark.parametrize("name", ["accuracy_200_epochs.csv", "accuracy_12_epochs.csv"])
def test_both_forms_of_table(nas_data: Path, name: str) -> None:
    table = AccuracyTable.read(nas_data / "nasbench201" / name)
    if name == "accuracy_12_epochs.csv":
        assert table.accuracy(find_cell(FIRST), "cifar10", "val") == 63.364
        assert table.accuracy(find_cell(FIRST), "imagenet16-120", "test") == 17.0
    else:
        assert [round(table.best(dataset).accuracy, 2) for dataset in DATASETS] == [94.37, 73.51, 47.31]
        assert table.best("cifar100").genotype == find_cell(BEST)
        assert table.best("cifar100").cell == 9930
        assert table.results(find_cell(BEST))["cifar100-test"] == table.best("cifar100").accuracy
        with pytest.raises(UserError, match="no val accuracy on 'cifar10'"):
            table.accuracies("cifar10", "val")


def test_genotype_code_and_string_are_the_same() -> None:
    for code in all_codes()[:50]:
        assert (encode_cell(decode_cell(code)) == code).all()
        assert (parse_string(to_string(decode_cell(code))) == code).all()


def test_an_edge_that_is_not_named_carries_nothing() -> None:
    sparse = Genotype(
        space="nasbench201",
        cells={"cell": Cell(nodes=((("skip_connect", 0),), (), (("nor_conv_3x3", 1),)), output=(3,))},
    )
    assert to_string(sparse) == "|skip_connect~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|"


@pytest.mark.parametrize(
    ("nodes", "output"),
    [
        (((("skip_connect", 0), ("none", 0)), (), ()), (3,)),
        (((), (), ()), (2, 3)),
        (((), ()), (2,)),
    ],
    ids=["an edge twice", "two outputs", "two nodes"],
)
def test_what_no_table_can_hold_is_refused(nodes: tuple[object, ...], output: tuple[int, ...]) -> None:
    genotype = Genotype.model_validate(
        {"space": "nasbench201", "cells": {"cell": {"nodes": nodes, "output": output}}}
    )
    with pytest.raises(UserError):
        encode_cell(genotype)


@pytest.mark.parametrize(
    "text",
    ["15625", "|nor_conv_5x5~0|" + SECOND[16:], FIRST[:-17], FIRST.replace("~2", "~1"), "nowhere.json"],
)
def test_what_is_no_cell_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError):
        find_cell(text)


def test_a_genotype_file_is_a_cell(tmp_path: Path) -> None:
    (tmp_path / "genotype.json").write_text(find_cell("7").model_dump_json())
    assert find_cell(str(tmp_path / "genotype.json")) == find_cell("7")


def test_rows_may_come_in_any_order(table: Path, tmp_path: Path) -> None:
    read = AccuracyTable.read(table)
    assert read.accuracy(find_cell("4321"), "cifar10", "test") == 4.321
    assert (read.accuracies("cifar10", "val") == np.arange(CELLS) / 2000).all()
    read.write(tmp_path / "again.csv")
    again = AccuracyTable.read(tmp_path / "again.csv")
    assert all((again.columns[key] == values).all() for key, values in read.columns.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: lines[:-1], "15,624 different cells"),
        (lambda lines: [*lines[:-1], lines[1]], "15,624 different cells in 15,625"),
        (lambda lines: [["a", *lines[0][1:]], *lines[1:]], "no column arch"),
        (lambda lines: [[line[0]] for line in lines], "no accuracies"),
        (lambda lines: [*lines[:5], lines[5][:2], *lines[6:]], "row 6"),
        (lambda lines: [*lines[:5], [lines[5][0], "high", "1", ""], *lines[6:]], "'high'"),
        (lambda lines: [*lines[:5], [lines[5][0], "nan", "1", ""], *lines[6:]], "missing or infinite"),
        (
            lambda lines: [["arch", "cifar10-test", "CIFAR10TestAccuracy200Epochs", ""], *lines[1:]],
            "two columns",
        ),
        (
            lambda lines: [*lines[:5], ["|skip~0|" + FIRST[16:], *lines[5][1:]], *lines[6:]],
            "not an operation",
        ),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, damage, says: str) -> None:
    with pytest.raises(UserError, match=says):
        AccuracyTable.read(write(tmp_path / "table.csv", damage(rows())))


def test_what_is_no_table_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    (tmp_path / "empty.csv").write_text("")
    for name in ("picture.png", "empty.csv", "missing.csv"):
        with pytest.raises(UserError):
            AccuracyTable.read(tmp_path / name)


def test_costs_of_all_cells_are_the_published_ones() -> None:
    """FLOPs and parameters as NATS-Bench prints them for cells 0 and 1; its FLOPs count the classifier's
    biases too."""
    flops = [
        (all_costs("macs", NETWORKS[dataset])[:2] + NETWORKS[dataset].classes) / 1e6 for dataset in DATASETS
    ]
    assert flops[0] == pytest.approx([15.64737, 113.95137], abs=1e-9)
    assert flops[1][0] == pytest.approx(15.65322, abs=1e-9)
    assert flops[2][0] == pytest.approx(3.91948, abs=1e-9)
    assert [round(x, 2) for x in (flops[1][1], flops[2][1])] == [113.96, 28.5]
    assert [round(all_costs("params", NETWORKS[dataset])[1] / 1e6, 3) for dataset in DATASETS] == [
        0.802,
        0.808,
        0.810,
    ]
    assert all_costs("params")[1] == 802_426
    assert all_costs("params").max() == 1_531_546
    assert all_costs("params").min() == 73_306
    assert round(all_costs("macs").max() / 1e6, 2) == 220.12


def test_the_command_looks_a_cell_up_and_saves(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        parse(
            Compare, ["--table", str(table), "--cell", "9930", "--save", str(tmp_path / "saved.csv")]
        ).execute()
        == 0
    )
    printed = capsys.readouterr().out
    assert BEST in printed and "9.93" in printed and "184,730,240" in printed and "1,288,506" in printed
    assert f"--table {tmp_path / 'saved.csv'}" in printed
    assert len(AccuracyTable.read(tmp_path / "saved.csv").columns) == 2
    with pytest.raises(UserError, match="must end in"):
        parse(Compare, ["--table", str(table), "--save", "table.json"]).execute()


def test_a_genotype_of_another_space_has_no_entry(table: Path) -> None:
    cell = {"nodes": [[["tanh", 0]]] * 8, "output": list(range(1, 9))}
    other = Genotype.model_validate(
        json.loads(json.dumps({"space": "recurrent", "cells": {"recurrent": cell}}))
    )
    with pytest.raises(UserError, match="space 'recurrent'"):
        AccuracyTable.read(table).accuracy(other, "cifar10")
