"""Networks of timm that are no packaged spaces can be described with a space's words, exactly."""

from typing import Any

import pytest
import torch
from originals import filled_in_order, logits, shaken, tensors_in_order

from ofa.space.arch import largest
from ofa.space.space import Space

SQUEEZE = {"of": "input", "ratio": 0.25, "divisor": 1, "act": "relu", "gate": "sigmoid"}
SWISH_SQUEEZE = SQUEEZE | {"act": "swish"}


def stages(act: str, *rows: tuple[int, ...], **fields: Any) -> list[dict[str, Any]]:
    """Stages of (width, depth, kernel, expansion, stride), and what all of them have."""
    found = []
    for width, depth, kernel, expand, stride in rows:
        choices = {"width": (width,), "depth": (depth,), "kernel": (kernel,), "expand": (expand,)}
        found.append(choices | {"stride": stride, "act": act} | fields)
    return found


def network(act: str, stem: int, described: list[dict[str, Any]], head: int, **fields: Any) -> dict[str, Any]:
    values = {"stem": {"width": (stem,), "act": act}, "head": {"width": (head,), "act": act}}
    return values | {"stages": described} | fields


def semnasnet() -> dict[str, Any]:
    """MnasNet-A1, where only some stages have squeeze-and-excitation."""
    first = stages("relu", (16, 1, 3, 1, 1), (24, 2, 3, 6, 2))
    third = stages("relu", (40, 3, 5, 3, 2), se=SQUEEZE)
    fourth = stages("relu", (80, 4, 3, 6, 2))
    fifth = stages("relu", (112, 2, 3, 6, 1), (160, 3, 5, 6, 2), se=SQUEEZE)
    return network("relu", 32, [*first, *third, *fourth, *fifth, *stages("relu", (320, 1, 3, 6, 1))], 1280)


def edge_tpu() -> dict[str, Any]:
    """EfficientNet-EdgeTPU-S, whose first blocks are fused."""
    fused = stages("relu", (24, 1, 3, 3, 1), (32, 2, 3, 8, 2), (48, 4, 3, 8, 2), block="fused")
    others = stages("relu", (96, 5, 5, 8, 2), (144, 4, 5, 8, 1), (192, 2, 5, 8, 2))
    return network("relu", 32, [*fused, *others], 1280)


def minimal_v3() -> dict[str, Any]:
    """MobileNetV3-Large of TensorFlow without what runs badly on some chips; expansions mix in its stages."""
    rows = [(16, 1, 3, 1, 1), (24, 1, 3, 4, 2), (24, 1, 3, 3, 1), (40, 3, 3, 3, 2), (80, 1, 3, 6, 2)]
    described = stages("relu", *rows)
    for depth, expand in ((1, 2.5), (2, 2.3)):
        described += stages("relu", (80, depth, 3, 1, 1), expand=(expand,))
    described += stages("relu", (112, 2, 3, 6, 1), (160, 3, 3, 6, 2))
    values = network("relu", 16, described, 1280, padding="same", bn_eps=1e-3)
    return values | {"head": values["head"] | {"expand": 6, "bias": True}}


def efficientnet_b3() -> dict[str, Any]:
    rows = [(24, 2, 3, 1, 1), (32, 3, 3, 6, 2), (48, 3, 5, 6, 2), (96, 5, 3, 6, 2), (136, 5, 5, 6, 1)]
    described = stages("swish", *rows, (232, 6, 5, 6, 2), (384, 2, 3, 6, 1), se=SWISH_SQUEEZE)
    return network("swish", 40, described, 1536)


STEM = {"width": (64,), "act": "relu", "kernel": 7, "pool": True}


def resnet_18d() -> dict[str, Any]:
    """The deep stem and the pooled shortcuts of ResNet-D around basic blocks."""
    rows = [(64, 2, 3, 1, 1), (128, 2, 3, 1, 2), (256, 2, 3, 1, 2), (512, 2, 3, 1, 2)]
    stem = {"width": (64,), "act": "relu", "deep": {"middle": (32,), "plain": 1}}
    return {"stem": stem, "stages": stages("relu", *rows, block="basic")}


def resnext_50() -> dict[str, Any]:
    """32 groups in every stage: their width grows with the stage's."""
    described = []
    for place, depth in enumerate((3, 4, 6, 3)):
        stride = 1 if place == 0 else 2
        fields = {"block": "bottleneck", "pooled": False, "group_width": 4 * 2**place, "expand": (0.5,)}
        described += stages("relu", (256 * 2**place, depth, 3, 1, stride), **fields)
    return {"stem": STEM, "stages": described}


def wide_resnet_50() -> dict[str, Any]:
    rows = [(256, 3, 3, 1, 1), (512, 4, 3, 1, 2), (1024, 6, 3, 1, 2), (2048, 3, 3, 1, 2)]
    return {"stem": STEM, "stages": stages("relu", *rows, block="bottleneck", pooled=False, expand=(0.5,))}


def regnet_y_800mf() -> dict[str, Any]:
    rows = [(64, 1, 3, 1, 2), (128, 3, 3, 1, 2), (320, 8, 3, 1, 2), (768, 2, 3, 1, 2)]
    fields = {"block": "bottleneck", "pooled": False, "group_width": 16, "se": SQUEEZE}
    return {"stem": {"width": (32,), "act": "relu"}, "stages": stages("relu", *rows, **fields)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("semnasnet_100", semnasnet()),
        ("efficientnet_es", edge_tpu()),
        ("tf_mobilenetv3_large_minimal_100", minimal_v3()),
        ("efficientnet_b3", efficientnet_b3()),
        ("resnet18d", resnet_18d()),
        ("resnext50_32x4d", resnext_50()),
        ("wide_resnet50_2", wide_resnet_50()),
        ("regnety_008", regnet_y_800mf()),
    ],
)
def test_a_described_network_is_the_original(name: str, values: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = shaken(timm.create_model(name))
    space = Space.model_validate({"name": name, "resolution": (64,), "granularity": "block"} | values)
    ours = filled_in_order(space, largest(space), tensors_in_order(theirs))
    x = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        wanted = logits(theirs, x, training)
        assert (logits(ours, x, training) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
