"""EfficientNets, MobileNets and ResNets are, tensor by tensor in order, what timm and torchvision define."""

import os
from importlib.util import find_spec
from itertools import product
from pathlib import Path

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
from torch import Tensor

from engine.compute.macs import count_macs, count_parameters
from ofa.cost import cost_of
from ofa.space.arch import check_arch, largest
from ofa.space.published import published
from ofa.space.space import load_space

FAMILIES = ("efficientnet", "mobilenet", "mobilenet_v4", "resnet")
SPACES = sorted({parameter.values[0]["space"] for parameter in entries(*FAMILIES)})


@pytest.mark.slow
@pytest.mark.parametrize("entry", entries(*FAMILIES))
def test_logits_are_those_of_the_original(entry: Entry) -> None:
    torch.manual_seed(0)
    theirs = shaken(original(entry))
    ours = filled_in_order(*space_and_arch(entry, 64), tensors_in_order(theirs))
    # Train mode comes last: it moves the stored statistics, and sources differ in how fast.
    # A side of 72 leaves odd maps, on which padding may depend.
    for training, height in product((False, True), (64, 72)):
        x = torch.randn(2, 3, height, 64)
        wanted = logits(theirs, x, training)
        difference = (logits(ours, x, training) - wanted).abs().max()
        assert difference <= 1e-5 * wanted.abs().max(), (height, training)


@pytest.mark.parametrize("entry", entries(*FAMILIES, source="package"))
def test_trained_weights_of_a_package_give_the_originals_logits(entry: Entry) -> None:
    spec = find_spec(entry["module"])
    if spec is None:
        pytest.skip(f"needs {entry['package']}")
    (folder,) = spec.submodule_search_locations or ()
    (file,) = (Path(folder) / "models").glob("*.pth")
    content = torch.load(file, weights_only=True)
    trained: list[Tensor] = [t for name, t in content.items() if not name.endswith("num_batches_tracked")]
    theirs = original(entry)
    for target, source in zip(tensors_in_order(theirs), trained, strict=True):
        target.copy_(source)
    ours = filled_in_order(*space_and_arch(entry, 64), trained)
    x = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        wanted = logits(theirs, x, training)
        assert (logits(ours, x, training) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("entry", entries(*FAMILIES))
def test_macs_and_parameters_are_those_of_the_original(entry: Entry) -> None:
    space, arch = space_and_arch(entry)
    with torch.device("meta"):
        net = original(entry)
        image = torch.empty(1, 3, arch.resolution, arch.resolution)
    assert cost_of(space, arch, 1000, 3) == (count_macs(net, image), count_parameters(net))
    named = published(load_space(entry["space"]))[entry["space"]]
    assert (named.macs, named.params) == cost_of(load_space(entry["space"]), arch, 1000, 3)


@pytest.mark.parametrize("name", SPACES)
def test_the_published_network_is_the_largest_where_its_stages_are_uniform(name: str) -> None:
    space = load_space(name)
    arch = published(space)[name].arch
    check_arch(space, arch)
    # Weights of some sources are meant for images that are larger than the paper's.
    top = largest(space).model_copy(update={"resolution": arch.resolution})
    # Their stages mix expansions, and those of the second one kernels, too.
    mixed = name.startswith(("mobilenet_v3", "mobilenet_v4"))
    assert (arch != top) == mixed
    assert (top.width, top.depth) == (arch.width, arch.depth)
    assert (top.kernel != arch.kernel) == name.startswith("mobilenet_v4")


@pytest.mark.parametrize("name", SPACES)
def test_a_block_has_a_shortcut_in_every_architecture_or_in_none(name: str) -> None:
    space = load_space(name)
    arch = published(space)[name].arch
    for i, stage in enumerate(space.stages):
        # Other kinds have a convolution in the shortcut where widths differ.
        if stage.stride > 1 or stage.block not in ("inverted", "fused"):
            continue
        agrees = arch.width[i] == arch.width[i + 1]
        for before, width in product(space.widths_before(i), stage.width):
            assert (before == width) == agrees, f"stage {i}: {before} to {width}"


@pytest.mark.parametrize("entry", entries(*FAMILIES, source="timm"))
def test_timm_says_the_same_of_its_weights(entry: Entry) -> None:
    timm = pytest.importorskip("timm")
    facts = timm.get_pretrained_cfg(entry["name"])
    assert (tuple(entry["mean"]), tuple(entry["std"])) == (facts.mean, facts.std)
    assert entry["size"] == (facts.test_input_size or facts.input_size)[-1]
    assert entry["crop"] == (facts.test_crop_pct or facts.crop_pct)
    assert entry["interpolation"] == facts.interpolation
    assert entry["licence"].lower() == facts.license
    assert entry["url"] == f"https://huggingface.co/{facts.hf_hub_id}"


@pytest.mark.parametrize("entry", entries(*FAMILIES, source="torchvision"))
def test_torchvision_says_the_same_of_its_weights(entry: Entry) -> None:
    models = pytest.importorskip("torchvision.models")
    weights = models.get_model_weights(entry["name"]).DEFAULT
    facts = weights.transforms()
    assert (entry["mean"], entry["std"]) == (facts.mean, facts.std)
    assert [entry["size"]] == facts.crop_size
    assert entry["crop"] == pytest.approx(facts.crop_size[0] / facts.resize_size[0], abs=5e-4)
    assert entry["interpolation"] == facts.interpolation.value
    page = os.path.basename(entry["url"])
    assert page == f"torchvision.models.{entry['name']}.html"
