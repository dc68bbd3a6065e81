"""The network of a genotype: the published sizes to the last parameter, the published graph, drop-path and
the auxiliary head."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from oneshot.networks.final import FinalNetwork, StemName
from oneshot.networks.final_cells import READ_BEFORE_RELU, FinalCell
from oneshot.spaces.genotype import Cell, Genotype
from oneshot.spaces.read_genotype import find_genotype

# Counted on the networks of the reference codes: quark0/darts, yuhuixu1993/PC-DARTS, chenxin061/pdarts,
# xiaomi-automl/FairDARTS and
# Meituan-AutoML/DARTS-. CIFAR: 36 channels, 20 cells; parameters, with auxiliary head, of 100 classes, MACs.
# ImageNet: 48 channels,
# 14 cells; parameters, with auxiliary head, MACs.
COUNTED = {
    "NASNet": (3_830_950, 4_288_944, 3_895_840, 603_452_448, 5_564_320, 6_800_520, 604_031_616),
    "AmoebaNet": (3_145_078, 3_603_072, 3_184_048, 488_931_552, 4_627_360, 5_863_560, 526_746_624),
    "DARTS_V1": (3_169_414, 3_645_840, 3_221_344, 500_987_520, 4_510_432, 5_771_208, 505_864_704),
    "DARTS_V2": (3_349_342, 3_825_768, 3_401_272, 528_359_040, 4_718_752, 5_979_528, 529_911_552),
    "PC_DARTS_cifar": (3_634_678, 4_111_104, 3_686_608, 556_670_592, 5_270_560, 6_531_336, 571_137_408),
    "PDARTS": (3_433_798, 3_910_224, 3_485_728, 532_174_464, 4_944_352, 6_205_128, 542_819_328),
    "SNAS": (2_661_382, 3_137_808, 2_713_312, 422_218_368, 3_939_328, 5_200_104, 438_042_432),
    "GAEA": (3_331_846, 3_808_272, 3_383_776, 509_530_752, 4_885_312, 6_146_088, 528_415_680),
    "DARTS_minus_cifar10": (3_739_222, 4_215_648, 3_791_152, 592_115_328, 5_210_080, 6_470_856, 586_284_288),
}
SKIPS = (("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_macs_are_those_of_the_reference_codes(name: str) -> None:
    genotype = find_genotype(name)
    cifar, imagenet = (
        FinalNetwork(genotype, auxiliary=True),
        FinalNetwork(genotype, 48, 14, 1000, stem="imagenet", auxiliary=True),
    )
    with torch.device("meta"):
        hundred = count_parameters(FinalNetwork(genotype, classes=100))
    (small, small_aux), (large, large_aux) = (
        (count_parameters(network) - count_parameters(network.auxiliary), count_parameters(network))
        for network in (cifar, imagenet)
    )
    macs = [
        count_macs(network, torch.zeros(1, 3, side, side)) for network, side in ((cifar, 32), (imagenet, 224))
    ]
    assert (small, small_aux, hundred, macs[0], large, large_aux, macs[1]) == COUNTED[name]


def small(genotype: Genotype, stem: StemName = "cifar", auxiliary: bool = True) -> FinalNetwork:
    torch.manual_seed(0)
    return FinalNetwork(genotype, 4, 3, 5, 3, stem, auxiliary).double()


def plain_cell(cell: FinalCell, before: Tensor, last: Tensor) -> Tensor:
    """The cell as its paper draws it: every edge on its own, each operation with its own ReLU."""
    states, operations = [cell.before(before.relu()), cell.last(last.relu())], iter(cell.operations)
    for sources in cell.sources:
        terms = [
            op(states[s] if isinstance(op, READ_BEFORE_RELU) else states[s].relu())
            for s, op in zip(sources, operations, strict=False)
        ]
        states.append(sum(terms, torch.zeros(())))
    return torch.cat([states[state] for state in cell.output], 1)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet", "PDARTS"])
def test_sharing_a_relu_changes_nothing(name: str, stem: StemName) -> None:
    network = small(find_genotype(name), stem)
    x = torch.randn(2, 3, *((16, 16) if stem == "cifar" else (64, 64)), dtype=torch.float64)
    before = last = network.stem(x)
    if network.second is not None:
        last = network.second(before.relu())
    for cell in network.cells:
        assert isinstance(cell, FinalCell)
        before, last = last, plain_cell(cell, before, last)
    wanted = network.classifier(last.mean((2, 3)))
    got, auxiliary = network(x)
    assert auxiliary.shape == got.shape == (2, 5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_a_halving_skip_sees_every_second_pixel_and_its_neighbour() -> None:
    reduce = FinalNetwork(find_genotype("DARTS_V2"), 4, 3).cells[2].before
    x, norm = torch.randn(2, 16, 8, 8), nn.BatchNorm2d(16)
    wanted = torch.cat(
        [
            F.conv2d(x[:, :, i::2, i::2], half[0].weight)
            for i, half in enumerate((reduce.here, reduce.shifted))
        ],
        1,
    )
    torch.testing.assert_close(reduce(x), norm(wanted), msg="as with the published one BatchNorm")
    assert reduce(x[:, :, :7, :7]).shape == (2, 16, 4, 4)


def test_drop_path_scales_what_it_keeps_and_spares_the_identity() -> None:
    cell = Cell(nodes=(SKIPS, (("skip_connect", 0), ("avg_pool_3x3", 1))), output=(2, 3))
    network = small(Genotype(cells={"normal": cell, "reduce": cell}))
    assert [c.dropped for c in network.cells] == [[False, False, False, True], [True] * 4, [True] * 4]
    first, x = network.cells[0], torch.randn(4, 12, 8, 8, dtype=torch.float64).relu()
    factor = torch.tensor([0.0, 2.0] * 2, dtype=torch.float64)[:, None, None, None]
    states = [first.before(x), first.last(x)]
    pooled = F.avg_pool2d(states[1], 3, 1, 1, count_include_pad=False)
    wanted = torch.cat([states[0] + states[1], states[0] + factor * pooled], 1)
    torch.testing.assert_close(first(x, x, [factor]), wanted)


def test_drop_path_draws_for_each_image_and_edge_from_the_generator() -> None:
    network, x = (
        small(find_genotype("DARTS_V2"), auxiliary=False),
        torch.randn(4, 3, 16, 16, dtype=torch.float64),
    )

    def run(seed: int, drop: float = 0.4) -> Tensor:
        return network(x, drop, torch.Generator().manual_seed(seed))

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1))
    assert torch.equal(run(0, 0.0), network(x))
    factors = torch.cat([f.flatten() for f in network._draw_kept(0.4, x, torch.Generator().manual_seed(0))])
    assert set(factors.unique().tolist()) == {0.0, 1 / 0.6}
    network.eval()
    assert torch.equal(run(0), network(x))


@pytest.mark.parametrize("side", [8, 20, 32, 40])
def test_the_auxiliary_head_takes_maps_of_any_side(side: int) -> None:
    logits, auxiliary = small(find_genotype("DARTS_V2"))(torch.randn(2, 3, side, side, dtype=torch.float64))
    assert auxiliary.isfinite().all() and logits.isfinite().all()


def test_the_auxiliary_head_averages_the_published_windows() -> None:
    network = small(find_genotype("DARTS_V2"))
    head, windows = network.auxiliary, nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False)
    x = torch.rand(2, 64, 8, 8, dtype=torch.float64)
    wanted = head.classifier(head.square(head.reduce(windows(x)).relu()).relu().flatten(1))
    assert torch.equal(head(x), wanted)


def test_cells_with_any_number_of_edges() -> None:
    cell = Cell(
        nodes=((), (("sep_conv_3x3", 0),), (*SKIPS, ("sep_conv_3x3", 3), ("dil_conv_5x5", 1))), output=(4, 0)
    )
    network = small(Genotype(cells={"normal": cell, "reduce": Cell(nodes=(SKIPS,), output=(2,))}))
    network(torch.randn(2, 3, 16, 16, dtype=torch.float64))[0].sum().backward()


def test_an_edge_that_is_none_adds_nothing() -> None:
    with_none = Cell(nodes=(SKIPS, (("none", 1), ("sep_conv_3x3", 0))), output=(2, 3))
    without = Cell(nodes=(SKIPS, (("sep_conv_3x3", 0),)), output=(2, 3))
    x, networks = torch.randn(2, 3, 16, 16, dtype=torch.float64), []
    for cell in (with_none, without):
        networks.append(small(Genotype(cells={"normal": cell, "reduce": cell}), auxiliary=False))
    networks[1].load_state_dict(networks[0].state_dict())
    assert torch.equal(networks[0](x), networks[1](x))


@pytest.mark.parametrize(
    ("nodes", "output", "said"),
    [
        ((SKIPS, ()), (2, 3), "Node 3 of the genotype has no edge"),
        (((("none", 0),),), (2,), "Node 2 of the genotype has no edge, or none but 'none', but is read"),
    ],
)
def test_cells_that_cannot_be_trained(
    nodes: tuple[tuple[tuple[str, int], ...], ...], output: tuple[int, ...], said: str
) -> None:
    cell = Cell(nodes=nodes, output=output)
    with pytest.raises(UserError, match=said):
        FinalNetwork(Genotype(cells={"normal": cell, "reduce": cell}))
    with pytest.raises(UserError, match="not 'recurrent'"):
        FinalNetwork(find_genotype("DARTS_V2_recurrent"))
