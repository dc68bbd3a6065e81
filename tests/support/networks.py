"""Networks with statistics that are not 0 and 1."""

from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ofa.space.codes import sample
from ofa.space.space import Space
from ofa.subnet import Subnet

M = TypeVar("M", bound=nn.Module)


def randomised(space: Space, seed: int) -> Subnet:
    """A subnet with running statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = Subnet(space, sample(space, np.random.default_rng(seed)), 5)
    return shaken(net)


def shaken(net: M) -> M:
    """The same network with statistics, scales and shifts as after training; eval mode."""
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "weight" in name or "var" in name else nn.init.normal_(
                tensor, std=0.2
            )
    return net.eval()
