"""The training step of BigNAS (2020, arXiv:2003.11142): the sandwich rule with in-place distillation.

On one batch the largest network learns from the labels; the smallest and n random ones learn from the
largest's soft predictions. Gradients of all add up for one update of the shared weights. Only the largest is
regularised: dropout and drop-connect are its alone, and weight decay acts once per step on every weight,
which is the L2 penalty of the largest.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.compute.device import autocast
from engine.config import Config
from engine.seed import numpy_generator, torch_generator
from ofa.space.space import Arch, largest, smallest
from ofa.supernet import Regularisation, Supernet
from ofa.training.losses import Distillation, SoftCrossEntropy, distil
from ofa.training.sampling import Sampler, Sampling, Uniform

Loss = Callable[[Tensor], Tensor]


class Sandwich(Config):
    """Settings of the step."""

    random: int = Field(2, ge=0, description="random subnets a step, beside the largest and the smallest")
    sampling: Sampling = Field(Uniform(), description="which ones")
    distillation: Distillation = Field(
        SoftCrossEntropy(), description="what they and the smallest learn from the largest"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the largest network's labels")
    dropout: float = Field(0.2, ge=0, lt=1, description="before the classifier, largest network only")
    drop_connect: float = Field(
        0.2, ge=0, lt=1, description="block i of n is dropped with i/n of this; largest only"
    )
    drop_connect_stages: int | None = Field(
        None, ge=1, description="only in this many last stages (AttentiveNAS: 2); none: all"
    )


def sandwich_step(
    supernet: Supernet,
    x: Tensor,
    y: Tensor,
    config: Sandwich,
    sampler: Sampler,
    seed: int,
    step: int,
    noise_seed: int | None = None,
) -> Tensor:
    """Add the gradients of one step to the supernet's. Returns the losses (1 + students,), detached, on the
    device.

    x: (N, C, H, W) images; y: (N,) classes or (N, K) probabilities; sampler: built from config.sampling.
        Draws depend on
    (seed, step) only; those of dropout and drop-connect on (noise_seed, step), if given: ranks may share
    subnets, but never noise.
    """
    space, rng, noise = (
        supernet.space,
        numpy_generator(seed, "subnets", step),
        seed if noise_seed is None else noise_seed,
    )
    teacher, losses = label_step(
        supernet, largest(space), x, y, config, noise, step
    )  # 1. the largest learns from the labels
    random = sampler.draw(
        rng, config.random, lambda archs: label_losses(supernet, archs, x, y, config.label_smoothing)
    )
    for arch in [*random, smallest(space)]:  # 2. the others learn from the largest
        with autocast(x.device):
            logits = supernet(x, arch)
        loss = distil(config.distillation, logits, teacher)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return torch.stack(losses)


def label_step(
    supernet: Supernet,
    arch: Arch,
    x: Tensor,
    y: Tensor,
    config: Sandwich,
    seed: int,
    step: int,
    also: Loss | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Add the gradients of one regularised network that learns from labels. Returns its logits and its loss,
    detached.

    also: a function of the logits that is added to the label loss.
    """
    generator = torch_generator(x.device, seed, "regularise", step)
    first = len(supernet.space.stages) - config.drop_connect_stages if config.drop_connect_stages else 0
    with autocast(x.device):
        logits = supernet(x, arch, Regularisation(config.dropout, config.drop_connect, first, generator))
    loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
    loss = loss if also is None else loss + also(logits)
    loss.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), [loss.detach()]


@torch.no_grad()
def label_losses(
    supernet: Supernet, archs: list[Arch], x: Tensor, y: Tensor, label_smoothing: float
) -> list[float]:
    """Loss of each on the batch, with batch statistics and without regularisation; one host
    synchronisation."""
    losses = []
    for arch in archs:
        with autocast(x.device):
            logits = supernet(x, arch)
        losses.append(F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing))
    return torch.stack(losses).tolist() if losses else []
