"""Peak memory against a simulation on the traced network; file size against files that were exported."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from peak_memory import simulated_peak
from torch import nn

import ofa
from engine.onnx_file import write_onnx
from ofa.cost import CLASS_BYTES, METADATA_BYTES, footprints_of
from ofa.space.arch import largest, smallest
from ofa.space.codes import decode, encode, sample
from ofa.space.space import load_space
from ofa.subnet import Subnet


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


@pytest.mark.parametrize("name", ["digits", "small128"])
def test_file_size_is_that_of_an_exported_file(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    arch = smallest(space)
    torch.manual_seed(0)
    net = Subnet(space, arch, 10, 3).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # as after training; the exporter stores equal tensors once
    write_onnx(net, torch.zeros(2, 3, arch.resolution, arch.resolution), tmp_path / "x.onnx", {})
    plain = footprints_of(space, encode(space, arch)[None], 10, 3).file[0] - METADATA_BYTES - 10 * CLASS_BYTES
    size = (tmp_path / "x.onnx").stat().st_size
    assert onnx.load(tmp_path / "x.onnx").metadata_props == []
    assert abs(plain - size) < 0.01 * size
