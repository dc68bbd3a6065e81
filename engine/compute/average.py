"""A running average of a network's weights, with few kernels a step and no wait of the host.

Either the exponential average that EfficientNet and BigNAS evaluate, after every step average = decay *
average + (1 - decay) * weights, or the mean of the weights after all steps (ASGD). torch's AveragedModel
computes the same weights, but also copies every buffer in every step, one kernel each, and sends its counter
to the device.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class RunningAverage:
    """The average of a network's weights over the steps, and a network that has it.

    Args:
        network: whose weights are averaged; it stays as it is.
        decay: share of the average that a step keeps, in [0, 1]; None: all steps weigh the same.
    """

    def __init__(self, network: nn.Module, decay: float | None = None):
        self.source, self.decay = network, decay
        self.averaged = copy.deepcopy(network)
        self.updates = 0
        # Lists that are made once: to walk through the modules of a supernet in each step takes time.
        self._average: list[Tensor] = list(self.averaged.parameters())
        self._weights: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are now; the first call copies them."""
        if self.updates == 0:
            torch._foreach_copy_(self._average, self._weights)
        elif self.decay is not None:
            torch._foreach_lerp_(self._average, self._weights, 1 - self.decay)
        else:
            way = torch._foreach_sub(self._weights, self._average)
            torch._foreach_div_(way, self.updates + 1)
            torch._foreach_add_(self._average, way)
        self.updates += 1

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights, and with the buffers that the source has now.

        Buffers, such as statistics of BatchNorm, are not averaged. To copy them here, where somebody looks,
        gives what a copy in each step gives.
        """
        buffers = list(self.averaged.buffers())
        if self.updates and buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, list(self.source.buffers()))
        return self.averaged

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        weights: dict[str, Tensor] = state["network"]
        self.averaged.load_state_dict(weights)
        self.updates = int(state["updates"])
