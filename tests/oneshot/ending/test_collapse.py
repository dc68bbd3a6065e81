"""Signs of collapse: skip connections counted, RobustDARTS's rule on made-up eigenvalues, and advice that the
method can follow."""

import pytest

from engine.command.cli import parse
from oneshot.ending.collapse import epoch_to_return_to, skips, warning
from oneshot.methods.darts import Darts
from oneshot.methods.darts_minus import DartsMinus
from oneshot.methods.gaea import Gaea
from oneshot.methods.sampled.gdas import Gdas
from oneshot.methods.staged.drnas import DrNas
from oneshot.search import Search
from oneshot.spaces.genotype import Cell, Genotype
from oneshot.spaces.read_genotype import find_genotype


@pytest.mark.parametrize(
    ("eigenvalues", "back"),
    [
        ([], None),
        ([1.0] * 50, None),
        ([1.0, 9.0] * 5, None),  # ten epochs: too early, whatever they say
        ([1.0] * 6 + [9.0] * 4, None),
        ([1.0] * 7 + [9.0] * 4, 6),  # mean of epochs 6 to 10: 7.4; of 2 to 6: 1
        ([1.0] * 20 + [2.4], None),  # 1.28 times
        ([1.0] * 20 + [2.6], 16),  # 1.32 times
        ([0.5 * 1.05**epoch for epoch in range(40)], None),  # 1.05 ** 4 = 1.22
        ([0.5 * 1.08**epoch for epoch in range(11)], 6),  # 1.08 ** 4 = 1.36
        ([5.0] * 10 + [1.0] * 10, None),  # falls
        ([-1.0] * 10 + [-9.0] * 10, None),  # a maximum has no sharp minimum
    ],
)
def test_the_rule_of_robust_darts(eigenvalues: list[float], back: int | None) -> None:
    assert epoch_to_return_to(eigenvalues) == back


def cell(*names: str) -> Genotype:
    nodes = tuple(
        tuple((name, source) for source, name in enumerate(names[at : at + 2])) for at in range(0, 8, 2)
    )
    plain = Cell(nodes=((("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),) * 4, output=(2, 3, 4, 5))
    return Genotype(space="darts", cells={"normal": Cell(nodes=nodes, output=(2, 3, 4, 5)), "reduce": plain})


def test_half_of_the_edges_are_too_many() -> None:
    three, four = (cell(*["skip_connect"] * n, *["sep_conv_3x3"] * (8 - n)) for n in (3, 4))
    assert (skips(three), skips(four)) == ({"normal": 3, "reduce": 0}, {"normal": 4, "reduce": 0})
    assert warning(three, Darts()) is None
    assert "4 of the 8 edges of the normal cell are skip connections" in (warning(four, Darts()) or "")
    turned = Genotype(space="darts", cells={"normal": four.cells["reduce"], "reduce": four.cells["normal"]})
    assert warning(turned, Darts()) is None
    assert warning(find_genotype("DARTS_V2"), Darts()) is None


@pytest.mark.parametrize("method", [Darts(), DartsMinus(), Gaea(), Gdas(), DrNas()])
def test_the_advice_can_be_followed(method: Darts) -> None:
    said = warning(cell(*["skip_connect"] * 8), method) or ""
    assert method.name not in said.split("--penalties")[0].replace(",", "").split()
    words = ["--method", method.name]
    decay = ["--penalties", "beta_decay"] if "--penalties beta_decay" in said else []
    watch = (
        ["--watch-every", "1", "--stop-at-collapse"] if "--watch-every 1 --stop-at-collapse" in said else []
    )
    found = parse(Search, [*words, *decay, *watch])
    type(method).model_validate(method.model_dump() | {"penalties": found.penalties})
    assert (bool(decay), bool(watch)) == (method.name != "gaea", method.name not in ("gdas", "drnas"))
