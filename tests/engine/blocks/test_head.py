"""The head with a BatchNorm behind the pool, and with a fraction as expansion."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from networks import shaken
from supernets import changed, filled, universal_spaces

from engine.blocks.head import HeadSpec
from engine.onnx_file import write_onnx
from ofa.calibration import calibrate
from ofa.layers import layer_specs
from ofa.space.arch import largest, smallest
from ofa.space.space import Space
from ofa.subnet import Subnet, extract

SPACE = universal_spaces()["per stage"]


def head_of(space: Space, width: int) -> HeadSpec:
    """The head behind a last stage of this width."""
    arch = largest(space)
    arch = arch.model_copy(update={"width": (*arch.width[:-2], width, arch.width[-1])})
    head = layer_specs(space, arch, 5, 3)[-1]
    assert isinstance(head, HeadSpec)
    return head


def test_an_expansion_may_be_a_fraction() -> None:
    assert [head_of(SPACE, width).wide for width in (64, 96)] == [112, 168]
    odd = changed(SPACE, head=SPACE.head.model_dump() | {"expand": 1.26} if SPACE.head else None)
    assert [head_of(odd, width).wide for width in (64, 96)] == [81, 121]
    # The supernet rounds as the subnets do.
    arch = smallest(odd)
    x = torch.randn(2, 3, arch.resolution, arch.resolution)
    net = filled(odd).eval()
    with torch.no_grad():
        torch.testing.assert_close(extract(net, arch)(x), net(x, arch), rtol=1e-5, atol=1e-5)


def test_the_norm_is_folded_on_export(tmp_path: Path) -> None:
    arch, path = smallest(SPACE), tmp_path / "x.onnx"
    net = shaken(Subnet(SPACE, arch, 5))
    write_onnx(net, torch.zeros(2, 3, arch.resolution, arch.resolution), path, {})
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in operators
    # Nothing is left of it between the pool and the classifier.
    pool = operators.index("ReduceMean")
    assert operators[pool:] == ["ReduceMean", "Conv", "Relu", "Reshape", "Gemm"]


def test_a_last_batch_of_one_image_is_left_out_of_the_calibration() -> None:
    arch = smallest(SPACE)
    images = torch.randn(5, 3, arch.resolution, arch.resolution)
    labels = torch.zeros(5, dtype=torch.long)
    both = calibrate(extract(filled(SPACE), arch), [(images[:4], labels[:4]), (images[4:], labels[4:])])
    first = calibrate(extract(filled(SPACE), arch), [(images[:4], labels[:4])])
    for ours, theirs in zip(both.state_dict().values(), first.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"expand": None}, "head.norm must be false without head.expand"),
        ({"bias": True}, "head.bias must be false with head.norm"),
        ({"expand": 0.5}, "greater than or equal to 1"),
    ],
)
def test_impossible_heads_are_one_sentence(head: dict[str, Any], said: str) -> None:
    assert SPACE.head is not None
    with pytest.raises(ValueError, match=said):
        changed(SPACE, head=SPACE.head.model_dump() | head)
