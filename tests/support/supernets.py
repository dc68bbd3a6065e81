"""Supernets without zeros and ones among their weights, and spaces with every choice of every kind."""

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from engine.onnx_file import write_onnx
from ofa.cost import footprints_of, metadata_bytes
from ofa.space.arch import smallest
from ofa.space.codes import encode
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet
from ofa.supernet import Supernet


def filled(space: Space, classes: int = 5, channels: int = 3) -> Supernet:
    """A supernet with no zeros or ones in it, so that no mistake can hide behind one."""
    torch.manual_seed(0)
    net = Supernet(space, classes, channels)
    for name, tensor in net.state_dict().items():
        if "matrices" in name:
            nn.init.normal_(tensor, std=0.3)
        if tensor.ndim == 1:
            positive = "weight" in name or "var" in name
            nn.init.uniform_(tensor, 0.5, 1.5) if positive else nn.init.normal_(tensor, std=0.1)
    return net


def changed(space: Space, **changes: Any) -> Space:
    """The same space with other values of some fields, checked again."""
    return Space.model_validate(space.model_dump() | changes)


def with_squeeze(space: Space, **settings: Any) -> Space:
    """The same space with other squeeze-and-excitation in the stages that have it."""
    stages = []
    for stage in space.model_dump()["stages"]:
        stages.append(stage | {"se": settings} if stage["se"] else stage)
    return changed(space, stages=tuple(stages))


def inverted_spaces() -> dict[str, Space]:
    digits, small = load_space("digits"), load_space("small32")
    per_block = changed(digits, granularity="block", resolution=(9, 13))
    return {
        "per stage": small,
        "per block, odd maps": per_block,
        "projected": changed(small, shortcut="projected", resolution=(16, 24)),
        "transformed": changed(
            small, granularity="block", kernels="transform", resolution=(16,), bn_eps=1e-3
        ),
        "same padding": changed(small, padding="same"),
        "same padding, per block, odd maps": changed(per_block, padding="same", resolution=(12, 13)),
        "same padding, transformed": changed(
            small, granularity="block", kernels="transform", padding="same", resolution=(16,)
        ),
        "EfficientNet's squeeze": with_squeeze(small, of="input", divisor=1, act="swish", gate="sigmoid"),
        "squeeze of the hidden width, per block": with_squeeze(per_block, ratio=0.5, divisor=4, act="swish"),
        "wide maps": wide_maps("identity"),
        "wide maps, projected": wide_maps("projected"),
    }


def wide_maps(shortcut: str) -> Space:
    """Blocks whose own input, kept for the shortcut, decides the peak of memory."""
    stage = {"width": (64,), "depth": (1, 2), "kernel": (3, 5), "expand": (1,), "se": True}
    stages = ({**stage, "act": "relu"}, {**stage, "act": "hard_swish", "stride": 2})
    return Space.model_validate(
        {
            "name": "wide",
            "resolution": (8, 12),
            "granularity": "block",
            "shortcut": shortcut,
            "stem": {"width": (4, 8), "stride": 1},
            "stages": stages,
        }
    )


def bottleneck_space() -> Space:
    """A small ResNet-D with every choice that OFA's has."""
    stage = {
        "block": "bottleneck",
        "depth": (1, 2),
        "kernel": (3,),
        "expand": (0.25, 0.5, 1.0),
        "act": "relu",
    }
    stages = (
        {**stage, "width": (16, 32)},
        {**stage, "width": (32, 48), "stride": 2},
        {**stage, "width": (48,), "stride": 2},
    )
    stem = {"width": (8, 16), "act": "relu", "deep": {"middle": (8, 16), "residual": (0, 1, 2)}}
    return Space.model_validate(
        {"name": "resnet", "resolution": (33, 40), "granularity": "block", "stem": stem, "stages": stages}
    )


def bottleneck_spaces() -> dict[str, Space]:
    odd = bottleneck_space()
    stem = {"width": (8, 16), "act": "relu", "kernel": 7, "pool": True}
    return {
        "deep stem, odd maps": odd,
        "plain deep stem": changed(odd, stem=odd.stem.model_dump() | {"deep": {"middle": (8,), "plain": 1}}),
        "7x7 stem, strided shortcuts": changed(odd, stem=stem, stages=unpooled(odd)),
        "groups": regnet_space(),
    }


def regnet_space() -> Space:
    """A small RegNet: groups of 8 channels, also where the output widths are no whole groups."""
    stage = {"block": "bottleneck", "depth": (1, 2), "kernel": (3,), "expand": (1,), "group_width": 8}
    squeeze = {"of": "input", "divisor": 1, "gate": "sigmoid"}
    stages = (
        {**stage, "width": (16, 24), "stride": 2, "pooled": False, "act": "relu"},
        {**stage, "width": (20, 40), "stride": 2, "se": squeeze},
    )
    stem = {"width": (8, 16), "stride": 1}
    values = {"name": "regnet", "resolution": (17, 24), "stem": stem, "stages": stages}
    return Space.model_validate(values)


def unpooled(space: Space) -> list[dict[str, Any]]:
    """The stages of a space with strided convolutions as shortcuts."""
    return [stage.model_dump() | {"pooled": False} for stage in space.stages]


def basic_spaces() -> dict[str, Space]:
    """Small ResNet-18s, in whose first stage the widths may agree with the stem's."""
    stage = {"block": "basic", "depth": (1, 2), "kernel": (3,), "expand": (0.5, 1.0, 1.5), "act": "relu"}
    stages = (
        {**stage, "width": (8, 16)},
        {**stage, "width": (16, 32), "stride": 2},
        {**stage, "width": (24,), "stride": 2, "kernel": (5,), "expand": (1,), "act": "swish"},
    )
    stem = {"width": (8, 16), "act": "relu", "kernel": 7, "pool": True}
    values = {"name": "basic", "resolution": (33, 40), "stem": stem, "stages": stages}
    per_stage = Space.model_validate(values)
    narrow = {"width": (8, 16), "stride": 1}
    return {
        "per stage, odd maps": per_stage,
        "per block, strided shortcuts": changed(per_stage, granularity="block", stages=unpooled(per_stage)),
        "wide maps": changed(per_stage, stem=narrow, resolution=(8, 13)),
    }


def fused_spaces() -> dict[str, Space]:
    """Small EfficientNetV2s: fused stages first, then one of inverted bottlenecks."""
    fused = {"block": "fused", "kernel": (3, 5), "depth": (1, 2)}
    stages = (
        {**fused, "width": (8, 16), "expand": (1,)},
        {**fused, "width": (16, 24), "expand": (2, 3, 4), "stride": 2},
        {**fused, "width": (24,), "expand": (2, 3, 4), "stride": 2, "se": True, "act": "relu"},
        {"width": (24, 32), "kernel": (3,), "depth": (1, 2), "expand": (4, 6), "se": True},
    )
    stem = {"width": (8, 16), "stride": 1}
    head = {"width": (32, 64)}
    values = {"name": "fused", "resolution": (16, 24), "stem": stem, "stages": stages, "head": head}
    per_stage = Space.model_validate(values)
    return {
        "per stage": per_stage,
        "per block, odd maps": changed(per_stage, granularity="block", resolution=(9, 13)),
        "same padding": changed(per_stage, padding="same", resolution=(14, 15, 16)),
        "EfficientNet's squeeze": with_squeeze(per_stage, of="input", divisor=1, act="swish", gate="sigmoid"),
    }


def universal_spaces() -> dict[str, Space]:
    """Small MobileNetV4s with their head and all variants of the block, also at stride 2 and expansion 1."""
    universal = {"block": "universal", "kernel": (3, 5), "act": "relu"}
    both, middle, start, none = (5, True), (0, True), (3, False), (0, False)
    stages = (
        {**universal, **variants(middle, both), "width": (24, 32), "depth": (1, 2), "expand": (1,)},
        {
            **universal,
            **variants(both, none, start, middle),
            "width": (48, 64),
            "depth": (1, 2, 4),
            "expand": (2, 3, 4),
            "stride": 2,
        },
        {
            **universal,
            **variants(start, none),
            "width": (64, 96),
            "depth": (1, 2),
            "expand": (1, 2, 3),
            "stride": 2,
        },
    )
    stem = {"width": (8, 16), "stride": 1}
    head = {"width": (96, 128), "expand": 1.75, "norm": True, "act": "relu"}
    values = {"name": "universal", "resolution": (16, 24), "stem": stem, "stages": stages, "head": head}
    per_stage = Space.model_validate(values)
    per_block = changed(per_stage, granularity="block", resolution=(9, 13))
    return {
        "per stage": per_stage,
        "per block, odd maps": per_block,
        "transformed": changed(per_block, kernels="transform"),
        "same padding": changed(per_stage, padding="same", resolution=(14, 15, 16)),
    }


def variants(*blocks: tuple[int, bool]) -> dict[str, tuple[int | bool, ...]]:
    """The fields `start` and `middle` of a stage with these blocks."""
    return {"start": tuple(start for start, _ in blocks), "middle": tuple(middle for _, middle in blocks)}


def conv_spaces() -> dict[str, Space]:
    """Convolutions at both strides, of 1 x 1 too, and inverted bottlenecks behind them."""
    conv = {"block": "conv", "expand": (1,), "depth": (1, 2), "act": "relu"}
    stages = (
        {**conv, "width": (16, 24), "kernel": (3, 5), "stride": 2},
        {**conv, "width": (32, 48), "kernel": (1, 3), "act": "swish"},
        {"width": (48, 64), "kernel": (3,), "depth": (1, 2), "expand": (2, 3, 4), "stride": 2},
        {**conv, "width": (64, 96), "kernel": (1,)},
    )
    values = {
        "name": "conv",
        "resolution": (16, 24),
        "stem": {"width": (8, 16), "stride": 1},
        "stages": stages,
    }
    per_stage = Space.model_validate(values)
    return {
        "per stage": per_stage,
        "per block, odd maps": changed(per_stage, granularity="block", resolution=(9, 13)),
        "same padding": changed(per_stage, padding="same", resolution=(14, 15, 16)),
    }


# Spaces of every kind of block, on which `tests/contracts/test_blocks.py` holds it to its contract.
SPACES: dict[str, dict[str, Space]] = {
    "inverted": inverted_spaces(),
    "bottleneck": bottleneck_spaces(),
    "basic": basic_spaces(),
    "fused": fused_spaces(),
    "universal": universal_spaces(),
    "conv": conv_spaces(),
}


def predicted_and_exported_size(space: Space, folder: Path) -> tuple[int, int]:
    """Bytes of the smallest subnet's ONNX file without metadata: as predicted, and as written."""
    arch, path = smallest(space), folder / "x.onnx"
    torch.manual_seed(0)
    net = Subnet(space, arch, 10, 3).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # as after training; the exporter stores equal tensors once
    write_onnx(net, torch.zeros(2, 3, arch.resolution, arch.resolution), path, {})
    assert onnx.load(path).metadata_props == []
    predicted = footprints_of(space, encode(space, arch)[None], 10, 3).file[0]
    return int(predicted) - metadata_bytes(space, 10, 3), path.stat().st_size


# A stem of stride 1, and maps at strides 1, 2, 4 and 8.
BACKBONE: dict[str, Any] = {
    "name": "backbone",
    "resolution": [16],
    "stem": {"width": [8], "stride": 1, "act": "hard_swish"},
    "stages": [
        {"width": [8], "depth": [1], "kernel": [3], "expand": [1], "stride": 2, "act": "relu"},
        {"width": [8, 16], "depth": [1, 2], "kernel": [3, 5], "expand": [2, 3], "stride": 2, "act": "relu"},
        {"width": [24], "depth": [1, 2], "kernel": [3], "expand": [2], "stride": 2, "act": "hard_swish"},
    ],
    "head": {"width": [32], "expand": 2, "act": "hard_swish"},
}
