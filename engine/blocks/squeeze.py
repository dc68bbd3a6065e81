"""Squeeze-and-excitation (2017, arXiv:1709.01507): pool, reduce, activation, restore, gate, scale.

Networks differ in how wide it is inside and in its functions. MobileNetV3 (2019, arXiv:1905.02244) takes a
quarter of the hidden width in multiples of 8, ReLU and a hard sigmoid; EfficientNet (2019, arXiv:1905.11946)
takes a quarter of the block's input width, swish and a sigmoid.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from engine.blocks.elastic import SharedLayer, Slices
from engine.blocks.sizes import make_divisible
from engine.compute.fast import ACTIVATION
from engine.config import Config

GATES: dict[str, Callable[[Tensor], Tensor]] = {"hard_sigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid}


# A part of a space's file, and of layer specs. It stands here, where it is used: `ofa.space` imports the
# blocks.
class Squeeze(Config):
    """How wide squeeze-and-excitation is inside, and its functions; by default those of MobileNetV3."""

    of: Literal["hidden", "input"] = Field("hidden", description="the width that `ratio` is a part of")
    ratio: float = Field(0.25, gt=0, le=1, description="inner width over that width, rounded down")
    divisor: int = Field(8, ge=1, description="the inner width is then rounded to a multiple of this")
    act: Literal["relu", "swish"] = "relu"
    gate: Literal["hard_sigmoid", "sigmoid"] = "hard_sigmoid"

    def width(self, inputs: int, hidden: int) -> int:
        """Channels inside.

        Args:
            inputs: channels of the block's input.
            hidden: channels of the map that is scaled.
        """
        base = hidden if self.of == "hidden" else inputs
        return make_divisible(int(base * self.ratio), self.divisor)

    @property
    def label(self) -> str:
        """`se`, with the settings after it where they are not MobileNetV3's."""
        if self == Squeeze():
            return "se"
        return f"se_{self.of}_{self.ratio:g}_{self.divisor}_{self.act}_{self.gate}"


class ElasticSqueezeExcite(SharedLayer):
    """Squeeze-and-excitation in the supernet.

    It is as wide as the map that it gets; the width inside follows from that and from the block's input.
    """

    def __init__(self, settings: Squeeze, inputs: int, hidden: int):
        super().__init__()
        self.settings = settings
        inner = settings.width(inputs, hidden)
        # Plain layers for their initialisation and their names; `forward` uses slices of them.
        self.reduce = nn.Conv2d(hidden, inner, 1)
        self.restore = nn.Conv2d(inner, hidden, 1)

    def forward(self, x: Tensor, inputs: int) -> Tensor:
        """inputs: channels of the block's input."""
        weights = {}
        for name, part in self.slices(inputs, x.shape[1]).items():
            weights[name] = self.trained(self.get_parameter(name), part)
        y = x.mean((2, 3), keepdim=True)
        y = F.conv2d(y, weights["reduce.weight"], weights["reduce.bias"])
        y = ACTIVATION[self.settings.act](y)
        y = F.conv2d(y, weights["restore.weight"], weights["restore.bias"])
        return x * GATES[self.settings.gate](y)

    def writers(self) -> list[Tensor]:
        """The tensors whose axis 0 are the channels that it scales."""
        assert self.restore.bias is not None
        return [self.restore.weight, self.restore.bias]

    def slices(self, inputs: int, hidden: int) -> Slices:
        inner = self.settings.width(inputs, hidden)
        assert self.reduce.bias is not None and self.restore.bias is not None
        return {
            "reduce.weight": self.reduce.weight[:inner, :hidden],
            "reduce.bias": self.reduce.bias[:inner],
            "restore.weight": self.restore.weight[:hidden, :inner],
            "restore.bias": self.restore.bias[:hidden],
        }


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation as plain layers."""

    def __init__(self, settings: Squeeze, hidden: int, inner: int):
        super().__init__()
        self.act, self.gate = ACTIVATION[settings.act], GATES[settings.gate]
        self.reduce = nn.Conv2d(hidden, inner, 1)
        self.restore = nn.Conv2d(inner, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.restore(y))


def cost_of_squeeze(hidden: int, inner: int) -> tuple[int, int]:
    """(MACs, parameters) for a map of `hidden` channels and `inner` ones inside."""
    weights = 2 * hidden * inner
    return weights, weights + hidden + inner


def memory_of_squeeze(area: int, hidden: int, inner: int) -> int:
    """The most numbers alive while it runs: the map that it scales, its pooled features and inner ones."""
    return hidden * area + hidden + inner


def entries_of_squeeze(settings: Squeeze | None) -> int:
    """Entries of an ONNX graph; 0 without squeeze-and-excitation."""
    if settings is None:
        return 0
    # The pool, two convolutions of two entries, activation, gate and product; swish is two nodes.
    return 9 if settings.act == "swish" else 8
