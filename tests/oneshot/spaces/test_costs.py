"""The closed form against torch's counter and against published figures."""

import numpy as np
import pytest
import torch

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from oneshot.nasbench201.codes import all_codes, all_costs, decode_cell
from oneshot.networks.final_nasbench201 import FinalNasBench201Network
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import DARTS_CIFAR, DARTS_IMAGENET, NASBENCH201, NetworkShape, edge_costs
from oneshot.spaces.genotype import Cell, Genotype

# Published cells, and what the reference network of DARTS counts for them with 20 cells of 36 channels and
# for ImageNet with 14 of 48.
DARTS_V2 = {
    "normal": (
        "sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 1 skip_connect 0 "
        "skip_connect 0 dil_conv_3x3 2"
    ),
    "reduce": (
        "max_pool_3x3 0 max_pool_3x3 1 skip_connect 2 max_pool_3x3 1 max_pool_3x3 0 skip_connect 2 "
        "skip_connect 2 max_pool_3x3 1"
    ),
}
PC_DARTS = {
    "normal": (
        "sep_conv_3x3 1 skip_connect 0 sep_conv_3x3 0 dil_conv_3x3 1 sep_conv_5x5 0 sep_conv_3x3 1 "
        "avg_pool_3x3 0 dil_conv_3x3 1"
    ),
    "reduce": (
        "sep_conv_5x5 1 max_pool_3x3 0 sep_conv_5x5 1 sep_conv_5x5 2 sep_conv_3x3 0 sep_conv_3x3 3 "
        "sep_conv_3x3 1 sep_conv_3x3 2"
    ),
}
COUNTED = [
    (DARTS_V2, (3_349_342, 528_359_040, 3_401_272, 4_718_752, 529_911_552)),
    (PC_DARTS, (3_634_678, 556_670_592, 3_686_608, 5_270_560, 571_137_408)),
]


def darts(words: dict[str, str], space: str = "darts") -> Genotype:
    cells = {}
    for kind, text in words.items():
        split = text.split()
        edges = [(split[i], int(split[i + 1])) for i in range(0, len(split), 2)]
        cells[kind] = Cell(nodes=tuple(tuple(edges[i : i + 2]) for i in range(0, 8, 2)), output=(2, 3, 4, 5))
    return Genotype(space=space, cells=cells)


@pytest.mark.parametrize(("words", "counted"), COUNTED, ids=["DARTS_V2", "PC_DARTS"])
def test_darts_equals_the_reference_network(words: dict[str, str], counted: tuple[int, ...]) -> None:
    genotype, space = darts(words), find_space("darts")
    cifar100 = DARTS_CIFAR._replace(classes=100)
    asked = [
        ("params", DARTS_CIFAR),
        ("macs", DARTS_CIFAR),
        ("params", cifar100),
        ("params", DARTS_IMAGENET),
        ("macs", DARTS_IMAGENET),
    ]
    assert tuple(edge_costs(space, count, shape).total(genotype) for count, shape in asked) == counted


@pytest.mark.parametrize(
    ("channels", "cells", "classes", "size"), [(16, 5, 10, 32), (4, 1, 7, 16), (6, 2, 120, 16)]
)
def test_nasbench201_equals_the_counter(channels: int, cells: int, classes: int, size: int) -> None:
    shape = NetworkShape(channels, cells, classes, size)
    macs, params = all_costs("macs", shape), all_costs("params", shape)
    for cell in np.random.default_rng(channels).integers(15625, size=4):
        net = FinalNasBench201Network(decode_cell(all_codes()[cell]), channels, cells, classes)
        assert macs[cell] == count_macs(net, torch.zeros(1, 3, size, size))
        assert params[cell] == count_parameters(net)


def test_an_edge_tells_what_it_adds() -> None:
    costs = edge_costs(find_space("nasbench201"), "macs", NASBENCH201)
    for cell in (0, 9930):
        genotype = decode_cell(all_codes()[cell])
        assert costs.total(genotype) == all_costs("macs")[cell]
    assert (costs.edges["cell"][:, [0, 1, 4]] == 0).all()
    assert (costs.edges["cell"][:, 3] == 9 * costs.edges["cell"][:, 2]).all()


def test_reduced_spaces_cost_what_darts_costs() -> None:
    words = {kind: "skip_connect 0 sep_conv_3x3 1 " * 4 for kind in ("normal", "reduce")}
    for count in ("macs", "params"):
        full = edge_costs(find_space("darts"), count, DARTS_CIFAR).total(darts(words))
        assert edge_costs(find_space("darts_s2"), count, DARTS_CIFAR).total(darts(words, "darts_s2")) == full


def test_a_skip_connection_costs_where_it_must_shrink() -> None:
    skips = edge_costs(find_space("darts"), "macs", DARTS_CIFAR).edges
    column = find_space("darts").operations.index("skip_connect")
    shrinks = [source < 2 for source, _ in find_space("darts").edges]
    assert ((skips["reduce"][:, column] > 0) == shrinks).all()
    assert (skips["normal"][:, column] == 0).all()


def test_what_has_no_closed_form_is_one_sentence() -> None:
    with pytest.raises(UserError, match="not for 'recurrent'"):
        edge_costs(find_space("recurrent"), "macs", DARTS_CIFAR)
    with pytest.raises(UserError, match="multiples of 4, not for 30"):
        edge_costs(find_space("darts"), "macs", DARTS_CIFAR._replace(size=30))
