"""Multiply-accumulates of any module, counted by torch: what every closed form in this project is tested
by."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of convolutions and matrix products in one forward pass of `module` on `inputs`, in eval mode.

    torch counts a multiply and an add as two operations; this field counts them as one.
    """
    training = module.training
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    module.train(training)
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in the parameters of `module`; buffers (BatchNorm statistics) are not counted."""
    return sum(p.numel() for p in module.parameters())
