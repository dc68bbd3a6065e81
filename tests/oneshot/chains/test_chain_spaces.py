"""Spaces of chains, published chains, and what they cost: against papers, timm and torch's own counter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from chains import SMALL_CHAIN, small_chain
from originals import logits, shaken, tensors_in_order

from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from oneshot.chains.costs import costs_of
from oneshot.chains.genotype import ChainGenotype, published_chain, published_chains
from oneshot.chains.layers import ImageShape
from oneshot.chains.network import FinalChain
from oneshot.chains.space import ChainSpace, load_chain_space, packaged_chain_spaces
from oneshot.spaces.read_genotype import find_genotype

IMAGENET = ImageShape(224)


def built(chain: ChainGenotype, image: ImageShape) -> FinalChain:
    return FinalChain(chain.space, chain.layers, image)


def random_chain(space: ChainSpace, seed: int) -> ChainGenotype:
    rng = np.random.default_rng(seed)
    layers = tuple(str(rng.choice(layer.operations)) for layer in space.layers)
    return ChainGenotype(space=space, layers=layers)


# ProxylessNAS-Mobile: 320M in the paper, and the parameters of its released network. FBNet-C: as timm has it;
# the paper says 249M, 295M and 375M of A to C.
@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("proxyless_mobile", 320_427_584, 4_080_512),
        ("fbnet_a", 247_748_792, 4_914_712),
        ("fbnet_b", 296_614_728, 4_813_048),
        ("fbnet_c", 384_960_160, 5_572_200),
    ],
)
def test_published_chains(name: str, macs: int, params: int) -> None:
    chain = find_genotype(name.upper())
    assert chain == published_chain(name)
    assert isinstance(chain, ChainGenotype) and chain.cost(IMAGENET) == (macs, params)
    net = built(chain, IMAGENET)
    assert count_parameters(net) == params
    assert count_macs(net, torch.zeros(1, 3, 224, 224)) == macs
    assert set(published_chains()) == {"proxyless_mobile", "fbnet_a", "fbnet_b", "fbnet_c"}


def test_fbnet_c_is_timms() -> None:
    timm = pytest.importorskip("timm")
    theirs, ours = shaken(timm.create_model("fbnetc_100")), built(published_chain("fbnet_c"), IMAGENET)
    with torch.no_grad():
        for mine, other in zip(tensors_in_order(ours), tensors_in_order(theirs), strict=True):
            mine.copy_(other)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        torch.testing.assert_close(logits(ours, x, training), logits(theirs, x, training))


@pytest.mark.parametrize("name", [*packaged_chain_spaces(), "small_chain"])
def test_costs_in_closed_form_are_those_of_the_network(name: str) -> None:
    space = small_chain() if name == "small_chain" else load_chain_space(name)
    image = ImageShape(space.resolution if name != "small_chain" else 13, 1, 7)
    for seed in range(2):
        chain = random_chain(space, seed)
        net = built(chain, image).eval()
        x = torch.zeros(1, 1, image.size, image.size)
        assert chain.cost(image) == (count_macs(net, x), count_parameters(net))
        for kind, expected in zip(("macs", "params"), chain.cost(image), strict=True):
            assert costs_of(space, image, kind).total(space, chain.layers) == expected  # type: ignore[arg-type]


def test_a_skip_is_offered_where_shapes_agree() -> None:
    space = load_chain_space("proxyless")
    skips = [number for number, layer in enumerate(space.layers) if "skip" in layer.operations]
    assert skips == [2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20]
    assert space.searched == tuple(range(1, 22)), "the first block is as it is"
    # As published, but for skips that would have to change a shape.
    assert len(load_chain_space("fbnet").searched) == 22
    mask = space.allowed_mask("chain")
    assert mask.shape == (21, 7) and mask.sum(1).tolist() == [6 + (n in skips) for n in space.searched]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("k5_e2", "k4_e2", "'k4_e2' is no operation of a chain; write k5_e6"),
        ("width: 12", "width: 13", "layer 2: k3_e1_g2 cannot cut 8 and 13 channels into 2 groups"),
        ("[k3_e1, k3_e1_g2, k5_e2, skip]", "[skip]", "layer 2 has nothing to choose from; name candidates"),
        ("[k3_e1, k3_e1_g2, k5_e2, skip]", "[k3_e1]", "no layer has a choice; name two candidates or more"),
        ("k5_e2, skip", "k5_e2, k5_e2", "layer 2 names an operation twice"),
        ("head:", "heads:", "there is no field 'heads'; did you mean 'head'?"),
    ],
)
def test_a_wrong_space_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(SMALL_CHAIN.replace(old, new))
    with pytest.raises(UserError) as refused:
        load_chain_space(str(path))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_wrong_chain_is_refused() -> None:
    space = small_chain()
    with pytest.raises(ValueError, match="layer 2 does not offer 'skip'"):
        ChainGenotype(space=space, layers=("k3_e1", "skip", "skip", "k3_e1", "skip"))
    with pytest.raises(ValueError, match="has 5 layers, not 1"):
        ChainGenotype(space=space, layers=("k3_e1",))
    with pytest.raises(UserError, match="fbnet_c"):
        find_genotype("fbnet_cc")
