"""The training step of BigNAS (2020, arXiv:2003.11142): the sandwich rule with in-place distillation.

On one batch the largest network learns from the labels; the smallest and n random ones learn from the largest's soft
predictions. Gradients of all add up for one update of the shared weights. Only the largest is regularised: dropout and
drop-connect are its alone, and weight decay acts once per step on every weight, which is the L2 penalty of the largest.
"""

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.config import Config
from engine.device import autocast
from engine.seed import numpy_generator, torch_generator
from ofa.losses import soft_cross_entropy
from ofa.space import Arch, largest, sample, smallest
from ofa.supernet import Regularisation, Supernet


class Sandwich(Config):
    """Settings of the step."""

    random: int = Field(2, ge=0, description="random subnets a step, beside the largest and the smallest")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the largest network's labels")
    dropout: float = Field(0.2, ge=0, lt=1, description="before the classifier, largest network only")
    drop_connect: float = Field(0.2, ge=0, lt=1, description="block i of n is dropped with i/n of this; largest only")
    drop_connect_stages: int | None = Field(None, ge=1, description="only in this many last stages (AttentiveNAS: 2); none: all")


def students_of(supernet: Supernet, config: Sandwich, rng: np.random.Generator) -> list[Arch]:
    """What a step trains beside the largest: `config.random` uniform samples and the smallest."""
    space = supernet.space
    return [*(sample(space, rng) for _ in range(config.random)), smallest(space)]


def sandwich_step(
    supernet: Supernet, x: Tensor, y: Tensor, config: Sandwich, seed: int, step: int, noise_seed: int | None = None
) -> Tensor:
    """Add the gradients of one step to the supernet's. Returns the losses (1 + students,), detached, on the device.

    x: (N, C, H, W) images; y: (N,) classes or (N, K) probabilities. Draws depend on (seed, step) only;
    those of dropout and drop-connect on (noise_seed, step), if given: ranks may share subnets, but never noise.
    """
    noise_seed = seed if noise_seed is None else noise_seed
    teacher_arch = largest(supernet.space)
    teacher, losses = label_step(supernet, teacher_arch, x, y, config, noise_seed, step)  # 1. the largest learns from the labels
    for arch in students_of(supernet, config, numpy_generator(seed, "subnets", step)):  # 2. the others learn from the largest
        with autocast(x.device):
            logits = supernet(x, arch)
        loss = soft_cross_entropy(logits, teacher)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return torch.stack(losses)


def label_step(supernet: Supernet, arch: Arch, x: Tensor, y: Tensor, config: Sandwich, seed: int, step: int) -> tuple[Tensor, list[Tensor]]:
    """Add the gradients of one regularised network that learns from labels. Returns its logits and its loss, detached."""
    generator = torch_generator(x.device, seed, "regularise", step)
    first = len(supernet.space.stages) - config.drop_connect_stages if config.drop_connect_stages else 0
    with autocast(x.device):
        logits = supernet(x, arch, Regularisation(config.dropout, config.drop_connect, first, generator))
    loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), [loss.detach()]
