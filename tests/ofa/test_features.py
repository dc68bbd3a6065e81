"""The maps of a subnet at its strides: the last of each, with the channels of the layers that write them."""

import pytest
import timm
import torch
from supernets import BACKBONE

from ofa.layers import layer_specs
from ofa.space.arch import Arch, largest, smallest
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet


def channels_by_spec(space: Space, arch: Arch) -> dict[int, int]:
    """Channels of the last map of each size, by the sides in the specs alone."""
    _, *blocks, head = layer_specs(space, arch, 10, 3)
    found = {arch.resolution // blocks[0].size: blocks[0].inp}  # type: ignore[union-attr]
    for block, after in zip(blocks, [*blocks[1:], head], strict=True):
        found[arch.resolution // after.size] = block.out  # type: ignore[union-attr]
    return {stride: channels for stride, channels in found.items() if stride in (4, 8, 16, 32)}


@pytest.mark.parametrize(
    "name", ["attentive_nas", "ofa_resnet50", "ofa_mbv3", "digits", "efficientnet_lite0"]
)
def test_the_maps_are_those_that_the_layers_write(name: str) -> None:
    space = load_space(name)
    for arch in (smallest(space), largest(space)):
        with torch.device("meta"):
            subnet, side = Subnet(space, arch, 10), arch.resolution
            maps = subnet.features(torch.zeros(2, 3, side, side))
        assert subnet.feature_channels == channels_by_spec(space, arch)
        wanted = {
            stride: (2, c, side // stride, side // stride) for stride, c in subnet.feature_channels.items()
        }
        assert {stride: tuple(found.shape) for stride, found in maps.items()} == wanted


PAIRS = {"resnet18": "resnet18", "resnet50d": "resnet50d", "efficientnet_lite0": "efficientnet_lite0"}


@pytest.mark.parametrize("name", PAIRS)
def test_the_maps_are_those_of_timms_backbones(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(PAIRS[name], features_only=True).eval()
    info = backbone.feature_info
    space = load_space(name)
    subnet = Subnet(space, find_arch(space, name), 10).eval()
    at_strides = zip(info.reduction(), info.channels(), strict=True)
    wanted = {stride: channels for stride, channels in at_strides if stride >= 4}
    assert subnet.feature_channels == wanted
    # Both have their layers in the same order; the backbone has no head.
    theirs = [tensor for tensor in backbone.state_dict().values() if tensor.ndim > 0]
    state = subnet.state_dict()
    ours = [tensor for tensor in state.values() if tensor.ndim > 0][: len(theirs)]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mine, tensor in zip(ours, theirs, strict=True):
            mine.copy_(tensor)
        maps = dict(zip(info.reduction(), backbone(x), strict=True))
        for stride, found in subnet.features(x).items():
            torch.testing.assert_close(found, maps[stride], atol=1e-5, rtol=1e-4)


def test_the_head_of_the_last_map_gives_the_logits() -> None:
    space = Space.model_validate(BACKBONE)
    subnet = extract(Supernet(space, 10).eval(), largest(space))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        maps = subnet.features(x)
        assert list(maps) == [4, 8], "the map of stride 2 is no feature, and there is none of 16"
        assert subnet.head is not None
        torch.testing.assert_close(subnet.classifier(subnet.head(maps[8])), subnet(x))
        # Detectors take larger images.
        assert subnet.features(torch.randn(1, 3, 48, 32))[8].shape[2:] == (6, 4)
