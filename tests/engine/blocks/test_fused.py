"""The fused inverted bottleneck against torchvision's EfficientNetV2, and what it refuses."""

from typing import Any

import pytest
import torch
from networks import shaken
from torch import nn
from torchvision.models.efficientnet import FusedMBConv, FusedMBConvConfig

from engine.blocks.kind import BlockChoice, BlockPosition, BlockSettings
from engine.blocks.kinds.fused import FUSED, Fused
from ofa.space.space import Space


def settings(expand: float, kernel: int = 3) -> BlockSettings:
    return BlockSettings((kernel,), (expand,), None, "swish", 1e-5, False, False)


# Rows of EfficientNetV2-S: expansion, kernel, stride, input, output.
@pytest.mark.parametrize(
    "row", [(1, 3, 1, 24, 24), (4, 3, 2, 24, 48), (4, 3, 1, 48, 48), (4, 5, 2, 48, 64)], ids=str
)
def test_it_computes_what_torchvisions_does(row: tuple[int, int, int, int, int]) -> None:
    expand, kernel, stride, inp, out = row
    torch.manual_seed(0)
    theirs = FusedMBConv(FusedMBConvConfig(expand, kernel, stride, inp, out, 1), 0.0, nn.BatchNorm2d).eval()
    shaken(theirs)
    position, choice = BlockPosition(inp, stride, stride > 1 or inp != out), BlockChoice(out, kernel, expand)
    spec = FUSED.spec(settings(expand, kernel), position, 14, choice)
    ours = Fused(spec, 1e-5).eval()
    tensors = [t for name, t in theirs.state_dict().items() if not name.endswith("tracked")]
    names = [name for name in ours.state_dict() if not name.endswith("tracked")]
    ours.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.randn(2, inp, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    assert FUSED.cost(spec)[1] == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ({"expand": (1, 4)}, {}, r"stages\[0\].expand .* mixes 1, which has no projection"),
        ({"expand": (1,), "se": True}, {}, r"stages\[0\].se .* must be false where expand is 1"),
        ({}, {"shortcut": "projected"}, r"stages\[0\].block .* is fused, whose shortcuts are identities"),
        ({"kernel": (3, 5)}, {"kernels": "transform"}, r"stages\[0\].kernel .* must be one kernel unless"),
    ],
)
def test_impossible_stages_are_one_sentence(
    stage: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    values = {"block": "fused", "width": (8,), "depth": (1,), "kernel": (3,), "expand": (4,)}
    space = {"name": "x", "resolution": (16,), "stem": {"width": (8,)}, "stages": [values | stage]}
    with pytest.raises(ValueError, match=said):
        Space.model_validate(space | changes)
