"""First weights follow the scheme that was asked for, and only a generator decides them."""

from typing import get_args

import pytest
import torch
from supernets import filled

from engine.blocks.elastic import ElasticBatchNorm
from ofa.initialisation import Scheme, initialise
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet


def drawn(space: Space, scheme: Scheme = "torch", zero_gamma: bool = True, seed: int = 0) -> Supernet:
    supernet = Supernet(space, 1000)
    initialise(supernet, scheme, zero_gamma, torch.Generator().manual_seed(seed))
    return supernet


def test_the_generator_alone_decides_the_weights(tiny: Space) -> None:
    torch.manual_seed(0)
    first = drawn(tiny).state_dict()
    torch.manual_seed(1)
    again, other = drawn(tiny).state_dict(), drawn(tiny, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_a_new_supernet_has_the_default(tiny: Space) -> None:
    torch.manual_seed(3)
    supernet = Supernet(tiny, 1000)
    made = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    torch.manual_seed(3)  # both draw in the order in which layers are made
    initialise(supernet)
    assert all(torch.equal(made[name], tensor) for name, tensor in supernet.state_dict().items())


def test_each_scheme_has_the_deviations_of_its_paper() -> None:
    """A block of 96 -> 384 -> 96 channels with a kernel of 5, and a classifier of 256 inputs (small32)."""
    classifier = {"torch": (3 * 256) ** -0.5, "fan_out": 0.01, "ofa": (3 * 256) ** -0.5}
    project = {"torch": (3 * 384) ** -0.5, "fan_out": (2 / 96) ** 0.5, "ofa": (2 / 96) ** 0.5}
    depthwise = {"torch": (3 * 25) ** -0.5, "fan_out": (2 / 25) ** 0.5, "ofa": (2 / 25 / 384) ** 0.5}
    # Squeeze-and-excitation, 384 -> 96: OFA draws it as every convolution.
    reduce = {"torch": (3 * 384) ** -0.5, "fan_out": (3 * 384) ** -0.5, "ofa": (2 / 96) ** 0.5}
    for scheme in get_args(Scheme):
        net = drawn(load_space("small32"), scheme)
        block = net.stages[3][2]  # type: ignore[index]
        wanted = (
            (net.classifier.weight, classifier),
            (block.project.conv.weight, project),  # type: ignore[union-attr]
            (block.depthwise.conv.weight, depthwise),  # type: ignore[union-attr]
            (block.se.reduce.weight, reduce),  # type: ignore[union-attr]
        )
        for weight, deviations in wanted:
            assert float(weight.detach().std()) == pytest.approx(deviations[scheme], rel=0.03), scheme
        assert bool((net.classifier.bias == 0).all()) == (scheme != "torch")  # type: ignore[union-attr]


def test_scales_of_one_where_zeros_are_not_wanted(tiny: Space) -> None:
    norms = [m for m in drawn(tiny, zero_gamma=False).modules() if isinstance(m, ElasticBatchNorm)]
    assert all((norm.weight == 1).all() for norm in norms)
    # Again with zeros, from weights that have learned.
    supernet = filled(tiny)
    initialise(supernet)
    zeros = [bool((m.weight == 0).all()) for m in supernet.modules() if isinstance(m, ElasticBatchNorm)]
    assert any(zeros)
    assert not all(zeros)
