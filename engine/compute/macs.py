"""Multiply-accumulates of any module, counted by torch; tests compare every closed form with this count."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of convolutions and matrix products in one forward pass of `module` on `inputs`, in eval mode."""
    training = module.training
    module.eval()  # in train mode BatchNorm would change its statistics
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    module.train(training)
    # torch counts a multiply and an add as two operations; papers on architecture search count one.
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in the parameters of `module`; buffers (BatchNorm statistics) are not counted."""
    return sum(p.numel() for p in module.parameters())
