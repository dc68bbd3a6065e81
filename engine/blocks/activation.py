"""The activations that a space can name; `engine.compute.fast.ACTIVATION` has the same as functions."""

from typing import Literal

from torch import nn

Act = Literal["relu", "relu6", "hard_swish", "swish"]

# Subnets are modules throughout, so that a tool that looks for layers by class finds activations, too.
ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "swish": nn.SiLU,
}
