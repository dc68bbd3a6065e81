"""The closed form against torch's own counter, against published tables, and many rows against one by one."""

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ofa
from engine.blocks.layers import LayerSpec
from engine.blocks.sizes import make_divisible
from engine.compute.macs import count_macs, count_parameters
from ofa.cost import cost_of, costs_of
from ofa.layers import cost_tables, layer_specs
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import sample, sample_codes
from ofa.space.published import find_arch, published
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet


@pytest.mark.parametrize("name", [p.stem for p in Path(ofa.__path__[0]).glob("space/archs/*.yaml")])
def test_every_published_subnet_costs_what_was_counted_on_the_reference_code(name: str) -> None:
    space = load_space(name)
    found = published(space)
    assert found
    for subnet in found.values():
        assert find_arch(space, json.dumps(subnet.arch.model_dump())) == subnet.arch
        assert cost_of(space, subnet.arch, 1000, 3) == (subnet.macs, subnet.params)


def test_published_extremes() -> None:
    space = load_space("attentive_nas")
    assert len(published(space)) == 15
    assert (cost_of(space, smallest(space), 1000, 3)[0], cost_of(space, largest(space), 1000, 3)[0]) == (
        203389568,
        1939335808,
    )


# Counted on the reference code at 224 pixels: smallest (MACs, parameters), largest, and one random
# architecture.
OFA = {
    "ofa_mbv3": ((121278672, 3410792), (566170656, 7664760)),
    "ofa_proxyless": ((265526256, 3718832), (1004908032, 7942056)),
    "ofa_resnet50": ((962192128, 6539280), (7491643904, 48105992)),
}


@pytest.mark.parametrize("name", OFA)
def test_extremes_of_ofas_spaces(name: str) -> None:
    space = load_space(name)
    archs = [extreme(space).model_copy(update={"resolution": 224}) for extreme in (smallest, largest)]
    assert tuple(cost_of(space, arch, 1000, 3) for arch in archs) == OFA[name]


def test_measured_ofa_subnets(nas_data: Path) -> None:
    space = load_space("ofa_mbv3")
    with (nas_data / "ofa_measured" / "mbnv3w10_evonsga2_acc_macs.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows[::10]:
        a = ast.literal_eval(row["Sub-network"])
        arch = Arch(
            resolution=a["r"][0],
            width=(16, 16, 24, 40, 80, 112, 160, 1280),
            depth=(1, *a["d"]),
            kernel=(3, *a["ks"]),
            expand=(1, *a["e"]),
        )
        assert cost_of(space, arch, 1000, 3) == (int(row["MACs"]), int(row["Model Parameters"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.stem for p in Path(ofa.__path__[0]).glob("space/spaces/*.yaml")])
def test_equal_to_torchs_counter(name: str) -> None:
    space, rng = load_space(name), np.random.default_rng(0)
    for arch in [smallest(space), largest(space), *(sample(space, rng) for _ in range(4))]:
        with torch.device("meta"):
            net = Subnet(space, arch, classes=7, channels=2)
            image = torch.empty(1, 2, arch.resolution, arch.resolution)
        assert cost_of(space, arch, 7, 2) == (count_macs(net, image), count_parameters(net))


@pytest.mark.slow
def test_layers_are_those_that_architectures_have(tiny: Space) -> None:
    """All of them, since each must be timed, and no other, since that would be timed for nothing."""
    for space in (tiny, Space.model_validate(tiny.model_dump() | {"granularity": "block"})):
        asked: set[LayerSpec] = set()

        def note(layer: LayerSpec, asked: set[LayerSpec] = asked) -> tuple[int]:
            asked.add(layer)
            return (0,)

        list(cost_tables(space, 5, 3, note))
        rng, found = np.random.default_rng(0), set()
        for _ in range(3000):
            found |= set(layer_specs(space, sample(space, rng), 5, 3))
        assert asked == found


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    for name in ("attentive_nas", "ofa_mbv3"):
        space = load_space(name)
        codes = sample_codes(space, 300, np.random.default_rng(0))
        many = costs_of(space, codes, 1000, 3)
        from ofa.space.codes import decode

        assert [cost_of(space, decode(space, row), 1000, 3) for row in codes] == list(
            zip(many.macs, many.params, strict=True)
        )


@pytest.mark.parametrize(
    ("value", "wanted"), [(1, 8), (11, 16), (12, 16), (18, 24), (19.9, 24), (20, 24), (67, 64), (72, 72)]
)
def test_make_divisible(value: float, wanted: int) -> None:
    assert make_divisible(value) == wanted  # 11 and 18 would lose more than 10% if rounded down
