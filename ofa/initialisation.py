"""The first weights of a supernet: the schemes of the papers, and last scales of zero.

Before a BatchNorm only the ratio of a step to the squared norm of the weights counts: a layer that starts c
times larger learns c squared times slower at the same rate. The schemes differ by such factors, most of all
in the layers that project to few channels and in depthwise layers.

| scheme | convolution, C inputs of each of O outputs, kernel k | classifier |
|---|---|---|
| torch | uniform within 1 / sqrt(k k C) | uniform within 1 / sqrt(inputs), bias too |
| fan_out | normal, variance 2 / (k k O); depthwise 2 / (k k) | normal, deviation 0.01, bias 0 |
| ofa | normal, variance 2 / (k k O), in depthwise layers too | uniform within 1 / sqrt(inputs), bias 0 |

`torch` is what the released code of AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021,
arXiv:2102.07954) has. `ofa` is that of OFA (2020, arXiv:1908.09791). `fan_out` is EfficientNet's habit (2019,
arXiv:1905.11946), which suits BigNAS (2020, arXiv:2003.11142), whose code was never released.
"""

from typing import Literal

import torch
from torch import nn

from engine.blocks.elastic import (
    ElasticBatchNorm,
    ElasticConv,
    ElasticDepthwise,
    ElasticLinear,
    draw_as_torch,
    zero_scale,
)
from engine.blocks.kind import ElasticBlock
from ofa.supernet import Supernet

Scheme = Literal["torch", "fan_out", "ofa"]
Layer = ElasticConv | ElasticDepthwise | ElasticLinear | nn.Conv2d


@torch.no_grad()
def initialise(
    supernet: Supernet,
    scheme: Scheme = "torch",
    zero_gamma: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Draw all weights of a supernet anew; learned kernel matrices stay as they are.

    Args:
        supernet: on the device of `generator`.
        scheme: how weights and biases are drawn; the module's docstring has the formulas.
        zero_gamma: whether the last scale of a block that always has a shortcut starts at 0, so that the
            block starts as that shortcut (BigNAS).
        generator: draws the weights; None: torch's global generator.
    """
    for module in supernet.modules():
        if isinstance(module, Layer):
            _draw(module, scheme, module is supernet.classifier, generator)
        elif isinstance(module, ElasticBatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if not zero_gamma:
        return
    for module in supernet.modules():
        if isinstance(module, ElasticBlock):
            zero_scale(module.last_norm())


def _draw(layer: Layer, scheme: Scheme, classifier: bool, generator: torch.Generator | None) -> None:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    # In `fan_out` squeeze-and-excitation, the only plain convolutions of a supernet, stays as torch has it.
    # No BatchNorm follows it, so its scale does change what it computes.
    if scheme == "torch" or (scheme == "fan_out" and isinstance(layer, nn.Conv2d)):
        draw_as_torch(weight, bias, generator)
        return
    if bias is not None:
        nn.init.zeros_(bias)
    if scheme == "fan_out" and classifier:
        nn.init.normal_(weight, std=0.01, generator=generator)
    elif scheme == "ofa" and classifier:
        draw_as_torch(weight, None, generator)  # the same bound: 1 / sqrt(inputs)
    else:
        area = weight[0, 0].numel()
        # One output channel reads a channel of a depthwise layer's input; OFA counts all of them.
        outputs = 1 if scheme == "fan_out" and isinstance(layer, ElasticDepthwise) else len(weight)
        nn.init.normal_(weight, std=(2 / (area * outputs)) ** 0.5, generator=generator)
