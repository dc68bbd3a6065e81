"""Peak memory against a simulation on the traced network; file size against files that were exported."""

from pathlib import Path

import numpy as np
import pytest
from peak_memory import simulated_peak
from supernets import predicted_and_exported_size

import ofa
from ofa.cost import footprints_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import decode, encode, sample
from ofa.space.space import load_space


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.stem for p in Path(ofa.__path__[0]).glob("space/spaces/*.yaml")])
def test_peak_memory_equals_a_simulation(name: str) -> None:
    space, rng = load_space(name), np.random.default_rng(0)
    for arch in [smallest(space), largest(space), *(sample(space, rng) for _ in range(4))]:
        for classes, channels in ((1000, 3), (5, 1)):
            found = footprints_of(space, encode(space, arch)[None], classes, channels).memory[0]
            assert found == simulated_peak(space, arch, classes, channels), arch


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    from ofa.space.codes import sample_codes

    space = load_space("ofa_mbv3")
    codes = sample_codes(space, 50, np.random.default_rng(0))
    many = footprints_of(space, codes, 1000, 3)
    for i, row in enumerate(codes):
        one = footprints_of(space, encode(space, decode(space, row))[None], 1000, 3)
        assert (one.memory[0], one.file[0]) == (many.memory[i], many.file[i])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "small128"])
def test_file_size_is_that_of_an_exported_file(name: str, tmp_path: Path) -> None:
    predicted, size = predicted_and_exported_size(load_space(name), tmp_path)
    assert size <= predicted < max(1.02 * size, size + 600), "a limit must hold, and waste little"
