"""The reduced spaces of RobustDARTS as data."""

import pytest

from engine.errors import UserError
from oneshot.spaces.cells import DARTS_OPERATIONS, SPACES, find_space
from oneshot.spaces.genotype import Cell, Genotype


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_edge_of_every_space_offers_something(space) -> None:
    for kind in space.cells:
        allowed_mask = space.allowed_mask(kind)
        assert allowed_mask.shape == (len(space.edges), len(space.operations))
        assert allowed_mask.any(1).all()
        assert allowed_mask.any(0).all() or space.name == "darts_s1"


def test_s1_offers_two_operations_on_each_edge() -> None:
    space = find_space("darts_s1")
    assert set(space.operations) < set(DARTS_OPERATIONS)
    names = {
        kind: [
            {name for name, allowed_mask in zip(space.operations, row, strict=True) if allowed_mask}
            for row in space.allowed_mask(kind).tolist()
        ]
        for kind in space.cells
    }
    assert all(len(offered_operations) == 2 for kind in names for offered_operations in names[kind])
    assert (space.allowed_mask("normal") | space.allowed_mask("reduce")).any(0).all()
    assert names["normal"][0] == {"skip_connect", "dil_conv_3x3"}
    assert names["normal"][space.edges.index((4, 5))] == {"dil_conv_3x3", "dil_conv_5x5"}
    assert names["reduce"][space.edges.index((1, 2))] == {"max_pool_3x3", "dil_conv_3x3"}


def test_a_genotype_names_operations_of_its_own_space() -> None:
    node = (("dil_conv_3x3", 0), ("sep_conv_3x3", 1))
    cell = Cell(nodes=(node,) * 4, output=(2, 3, 4, 5))
    assert Genotype(space="darts_s1", cells={"normal": cell, "reduce": cell}).space == "darts_s1"
    with pytest.raises(ValueError, match="'dil_conv_3x3' is not an operation"):
        Genotype(space="darts_s2", cells={"normal": cell, "reduce": cell})


def test_an_unknown_space_is_one_sentence() -> None:
    with pytest.raises(UserError, match="did you mean 'darts_s"):
        find_space("darts_s9")
