"""The search network of a chain."""

import torch
from chains import small_chain
from torch import nn

from oneshot.axes.edge_weights import EdgeWeights
from oneshot.chains.genotype import chain_of
from oneshot.chains.layers import ImageShape
from oneshot.chains.network import ChainNetwork, FinalChain, MixedLayer

IMAGE = ImageShape(8, 1, 10)
NAMES = ("k3_e1_g2", "skip", "k5_e2", "k3_e1")


def weights_of(names: tuple[str, ...], sampled: bool) -> dict[str, EdgeWeights]:
    """Those of one chain alone."""
    space = small_chain()
    columns = [space.operations.index(name) for name in names]
    weight_EO = torch.zeros(len(columns), len(space.operations))
    weight_EO[range(len(columns)), columns] = 1.0
    return {"chain": EdgeWeights(weight_EO, tuple((column,) for column in columns) if sampled else None)}


def test_one_chain_alone_is_the_final_network() -> None:
    space = small_chain()
    search, final = ChainNetwork(space, IMAGE), FinalChain(space, chain_of(space, NAMES).layers, IMAGE)
    blocks: list[nn.Module] = []
    edge = 0
    for layer in search.layers:
        if isinstance(layer, MixedLayer):
            if NAMES[edge] != "skip":
                blocks.append(layer.blocks[NAMES[edge]])
            edge += 1
        else:
            blocks.append(layer)
    final.stem.load_state_dict(search.stem.state_dict())
    final.head.load_state_dict(search.head.state_dict())
    for mine, theirs in zip(final.blocks, blocks, strict=True):
        mine.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 1, 8, 8)
    for sampled in (True, False):
        torch.testing.assert_close(search.eval()(x, weights_of(NAMES, sampled)), final.eval()(x))


def test_what_is_not_active_does_not_run() -> None:
    search, ran = ChainNetwork(small_chain(), IMAGE), list[str]()
    for layer in search.layers:
        if isinstance(layer, MixedLayer):
            for name, block in layer.blocks.items():
                block.register_forward_hook(lambda *_, name=name: ran.append(name))
    search(torch.randn(2, 1, 8, 8), weights_of(NAMES, sampled=True))
    assert ran == ["k3_e1_g2", "k5_e2", "k3_e1"]


def test_groups_are_shuffled_as_fbnet_does() -> None:
    from engine.blocks.plain import ChannelShuffle

    x = torch.randn(2, 6, 3, 3)
    # (N, g, C / g, H, W) with both axes of channels exchanged, as FBNet's released blocks.
    expected = x.view(2, 2, 3, 3, 3).permute(0, 2, 1, 3, 4).reshape(2, 6, 3, 3)
    assert torch.equal(ChannelShuffle(6, 2)(x), expected)
