"""MobileNetV4 is, tensor by tensor in order, what timm defines."""

import pytest
import torch
from originals import (
    Entry,
    entries,
    filled_in_order,
    logits,
    original,
    shaken,
    space_and_arch,
    tensors_in_order,
)

from engine.compute.macs import count_macs, count_parameters
from ofa.cost import cost_of
from ofa.space.arch import largest, smallest
from ofa.space.published import published
from ofa.space.space import load_space

ENTRIES = entries("mobilenet_v4")


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_logits_are_those_of_the_original(entry: Entry) -> None:
    torch.manual_seed(0)
    theirs = shaken(original(entry))
    # Sides that leave odd maps, too.
    for side in (64, 72):
        ours = filled_in_order(*space_and_arch(entry, side), tensors_in_order(theirs))
        x = torch.randn(2, 3, side, side)
        for training in (False, True):
            wanted = logits(theirs, x, training)
            difference = (logits(ours, x, training) - wanted).abs().max()
            assert difference <= 1e-5 * wanted.abs().max(), (side, training)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_macs_and_parameters_are_those_of_the_original(entry: Entry) -> None:
    space, arch = space_and_arch(entry)
    with torch.device("meta"):
        net = original(entry)
        image = torch.empty(1, 3, arch.resolution, arch.resolution)
    cost = cost_of(space, arch, 1000, 3)
    assert cost == (count_macs(net, image), count_parameters(net))
    named = published(load_space(entry["space"]))[entry["space"]]
    assert cost == (named.macs, named.params)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_published_network_lies_between_the_extremes(entry: Entry) -> None:
    space, arch = space_and_arch(entry)
    least, cost, most = (cost_of(space, a, 1000, 3)[0] for a in (smallest(space), arch, largest(space)))
    assert 4 * least < cost < most


@pytest.mark.parametrize("entry", ENTRIES)
def test_timm_says_the_same_of_its_weights(entry: Entry) -> None:
    timm = pytest.importorskip("timm")
    facts = timm.get_pretrained_cfg(entry["name"])
    assert (tuple(entry["mean"]), tuple(entry["std"])) == (facts.mean, facts.std)
    assert entry["size"] == facts.test_input_size[-1]
    assert entry["crop"] == facts.test_crop_pct
    assert entry["interpolation"] == facts.interpolation
    assert entry["licence"].lower() == facts.license
    assert entry["url"] == f"https://huggingface.co/{facts.hf_hub_id}"
