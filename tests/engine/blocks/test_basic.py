"""The basic block and the strided bottleneck against torchvision's, and what the basic block refuses."""

from typing import Any

import pytest
import torch
from networks import shaken
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import Bottleneck as TheirBottleneck

from engine.blocks.kind import BlockChoice, BlockKind, BlockPosition, BlockSettings
from engine.blocks.kinds.basic import BASIC
from engine.blocks.kinds.bottleneck import BOTTLENECK
from ofa.cost import cost_of
from ofa.layers import layer_specs
from ofa.space.arch import Arch, largest, single_arch_space
from ofa.space.space import Space


def projection(inp: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def compare(kind: BlockKind, theirs: nn.Module, expand: float, position: BlockPosition, width: int) -> None:
    """Both compute the same if the tensors of one are loaded into the other in their order."""
    shaken(theirs)
    settings = BlockSettings((3,), (expand,), False, "relu", 1e-5, False, False, pooled=False)
    spec = kind.spec(settings, position, 13, BlockChoice(width, 3, expand))
    ours = kind.plain(spec, 1e-5).eval()
    tensors = [t for name, t in theirs.state_dict().items() if not name.endswith("tracked")]
    names = [name for name in ours.state_dict() if not name.endswith("tracked")]
    ours.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.randn(2, position.inputs, 13, 13)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    assert kind.cost(spec)[1] == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("row", [(1, 16, 16), (1, 16, 24), (2, 16, 32)], ids=str)
def test_it_computes_what_torchvisions_does(row: tuple[int, int, int]) -> None:
    stride, inp, out = row
    torch.manual_seed(0)
    changes = stride > 1 or inp != out
    theirs = BasicBlock(inp, out, stride, projection(inp, out, stride) if changes else None)
    compare(BASIC, theirs, 1, BlockPosition(inp, stride, changes), out)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_strided_bottleneck_computes_what_torchvisions_does(stride: int) -> None:
    torch.manual_seed(0)
    theirs = TheirBottleneck(16, 8, stride, projection(16, 32, stride))
    compare(BOTTLENECK, theirs, 0.25, BlockPosition(16, stride, True), 32)


def basic_space(**changes: Any) -> Space:
    stage = {"block": "basic", "width": (8, 16), "depth": (1,), "kernel": (3,), "expand": (1,)} | changes
    stem = {"width": (8, 16)}
    return Space.model_validate({"name": "x", "resolution": (16,), "stem": stem, "stages": [stage]})


def test_the_first_shortcut_is_the_identity_where_widths_agree() -> None:
    space = basic_space()
    for stem in (8, 16):
        for width in (8, 16):
            arch = Arch(resolution=16, width=(stem, width), depth=(1,), kernel=(3,), expand=(1,))
            _, block, _ = layer_specs(space, arch, 5, 3)
            assert block.projects == (stem != width)
            single = single_arch_space(space, arch)
            assert cost_of(single, largest(single), 5, 3) == cost_of(space, arch, 5, 3)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"kernel": (3, 5)}, r"stages\[0\].kernel .* must be one kernel, since basic blocks take no more"),
        ({"se": True}, r"stages\[0\].se .* must be false, since basic blocks have no squeeze"),
    ],
)
def test_impossible_stages_are_one_sentence(stage: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        basic_space(**stage)


def test_projected_shortcuts_and_a_deep_stem_of_7x7_are_refused() -> None:
    values = basic_space().model_dump()
    with pytest.raises(ValueError, match=r"stages\[0\].block .* is basic, whose shortcuts are convolutions"):
        Space.model_validate(values | {"shortcut": "projected"})
    stem = {"width": (8,), "kernel": 7, "deep": {"middle": (8,)}}
    with pytest.raises(ValueError, match=r"stem\.kernel must be 3 in a deep stem, but is 7"):
        Space.model_validate(values | {"stem": stem})
