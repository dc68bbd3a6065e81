"""Training a subnet on from the supernet's weights, with labels and the soft predictions of a teacher.

The subnet is the only architecture of a space of its own, so that it trains as an ordinary network does, with
the statistics of its own batches. Several subnets that are tuned together share images and teacher, and
nothing else: each has an optimiser and a run folder of its own, and ends as if it were tuned alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compute.device import autocast
from ofa.space.arch import Arch, largest, single_arch_space
from ofa.supernet import Supernet
from ofa.trained import start_from
from ofa.training.losses import soft_cross_entropy


def single_network(supernet: Supernet, arch: Arch) -> Supernet:
    """A network of `arch` alone, with a copy of the weights that it has in `supernet`."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn in vain
        network = Supernet(single_arch_space(supernet.space, arch), supernet.classes, supernet.channels)
    start_from(network, supernet.cpu(), arch)
    return network


def tune_step(
    network: Supernet, x: Tensor, y: Tensor, teacher_NK: Tensor | None, weight: float, label_smoothing: float
) -> Tensor:
    """Add the gradients of one step of a network that learns from labels and from a teacher.

    Args:
        network: of `single_network`, in train mode.
        x: square images (N, C, side, side).
        y: classes (N,) or class probabilities (N, K).
        teacher_NK: logits of the teacher for these images; None: labels alone.
        weight: of the teacher's loss, beside 1 for that of the labels.
        label_smoothing: share of the labels that is spread over all classes.

    Returns:
        The losses (2,), of labels and teacher, detached; without a teacher (1,).
    """
    with autocast(x.device):
        logits = network(x, largest(network.space))
    losses = [F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing)]
    if teacher_NK is not None:
        losses.append(weight * soft_cross_entropy(logits, teacher_NK))
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return torch.stack(losses).detach()
