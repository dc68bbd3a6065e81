"""The training step of BigNAS (2020, arXiv:2003.11142): the sandwich rule with in-place distillation.

On one batch the largest network learns from the labels; the smallest and n random ones learn from the
largest's soft predictions, with `label_share` also from the labels. Gradients of all add up for one update of
the shared weights. Only the largest is regularised: the others have no dropout and no drop-connect, and
weight decay acts once per step on every weight, which is the L2 penalty of the largest.

`largest_first` delays the sandwich: in the first steps the largest network learns alone, which costs less
than half a step. Delayed epsilon-shrinking (2024, arXiv:2407.06167) begins to train subnets when the largest
is half trained; its rules for their learning rates are not here. In few steps the smallest, which learns in
each of them, is then ahead of all others by more than tuning leaves of it, and selection takes it for too
many budgets; `smallest=False` treats it as any subnet.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from engine.compute.gradients import Backward, Passes
from engine.compute.precision import autocast
from engine.config import Config
from engine.seed import numpy_generator, torch_generator
from ofa.space.arch import Arch, largest, smallest
from ofa.space.space import Space
from ofa.supernet import Regularisation, Supernet
from ofa.training.losses import Distillation, SoftCrossEntropy, distil
from ofa.training.sampling import Sampler, Sampling, Uniform, UniformSampler


class Sandwich(Config):
    """Settings of the step."""

    random: int = Field(
        2, ge=0, description="random subnets a step, beside the largest and the smallest, if that is on"
    )
    smallest: bool = Field(
        True,
        description=(
            "whether the smallest subnet learns in every step; if not, it learns when it is drawn, and its "
            "accuracy can be compared with that of others"
        ),
    )
    sampling: Sampling = Field(Uniform(), description="how the random subnets are drawn")
    distillation: Distillation = Field(
        SoftCrossEntropy(), description="loss by which all other subnets learn from the largest"
    )
    label_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "share of the labels' loss in what all other subnets learn from; 1: no distillation. In phases "
            "all subnets learn from labels anyway"
        ),
    )
    largest_first: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of all steps, the first ones, that train the largest network alone",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the labels spread over all classes")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="dropout rate before the classifier, in the largest network only"
    )
    drop_connect: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="block i of n is dropped at i/n of this rate, in the largest network only",
    )
    drop_connect_stages: int | None = Field(
        None, ge=1, description="last stages that have drop-connect (AttentiveNAS: 2); none: all stages"
    )

    @model_validator(mode="after")
    def _somebody_learns(self) -> Self:
        if not self.smallest and self.random == 0:
            raise ValueError(
                "without the smallest and without random subnets only the largest learns; give random at "
                "least 1, or train the largest alone: --arch largest"
            )
        return self


class Seeds(NamedTuple):
    """The seeds of a step; together with the number of the step they decide every draw.

    Processes that train together may share the seed of the subnets, but never that of the noise: their images
    are different, and so must be their noise.

    Args:
        subnets: decides which subnets the step trains.
        noise: decides dropout and drop-connect.
    """

    subnets: int = 0
    noise: int = 0


def sandwich_step(
    supernet: Supernet,
    x: Tensor,
    y: Tensor,
    step: int,
    config: Sandwich | None = None,
    sampler: Sampler | None = None,
    seeds: Seeds | None = None,
    passes: Passes | None = None,
) -> Tensor:
    """Add the gradients of one step to the supernet's; the caller clears them before and updates after.

    Args:
        supernet: in train mode.
        x: square images (N, C, side, side), which each subnet resizes to its own resolution.
        y: classes (N,) or class probabilities (N, K).
        step: the number of this step, from 0. The same seeds and number draw the same subnets and noise.
        config: settings; None: those of BigNAS, `Sandwich()`.
        sampler: draws the random subnets, of `build_sampler(config.sampling, ...)`; None: uniform.
        seeds: None: `Seeds()`.
        passes: runs the backward passes, one a network; None: gradients are added, and nothing else.

    Returns:
        The losses (1 + students,), detached, on the device: the largest's first, the smallest's last if it
        learns in every step.

    Raises:
        ValueError: the settings ask for a sampling other than uniform, and there is no sampler.

    Example:
        optimizer.zero_grad()
        losses = sandwich_step(supernet, x, y, step)
        optimizer.step()
    """
    config, seeds, passes = config or Sandwich(), seeds or Seeds(), passes or Passes()
    if sampler is None:
        sampler = _sampler_without_tables(config.sampling, supernet.space)

    def judge(archs: list[Arch]) -> list[float]:
        return label_losses(supernet, archs, x, y, config.label_smoothing)

    space, rng = supernet.space, numpy_generator(seeds.subnets, "subnets", step)
    # 1. the largest learns from the labels; the others learn from its logits of this very pass
    noise = (seeds.noise, step)
    teacher, loss = label_step(supernet, largest(space), x, y, config, noise, backward=passes.backward)
    losses = [loss]
    # 2. the others learn from the largest, or from the labels
    targets = (y, teacher)
    drawn = sampler.draw(rng, config.random, judge)
    *students, last = [*drawn, smallest(space)] if config.smallest else drawn
    for arch in students:
        losses.append(_student_step(supernet, arch, x, targets, config, passes.backward))
    losses.append(_student_step(supernet, last, x, targets, config, passes.last_backward))
    return torch.stack(losses)


def _sampler_without_tables(sampling: Sampling, space: Space) -> Sampler:
    # Tables take seconds to estimate: a sampler that needs them cannot be made in every step.
    if not isinstance(sampling, Uniform):
        raise ValueError(
            f"Sampling '{sampling.name}' has tables that are made once; pass the sampler that build_sampler "
            "makes of it."
        )
    return UniformSampler(space)


def _student_step(
    supernet: Supernet,
    arch: Arch,
    x: Tensor,
    targets: tuple[Tensor, Tensor],
    config: Sandwich,
    backward: Backward,
) -> Tensor:
    """Add the gradient of a network other than the largest; return its detached loss.

    Args:
        supernet: the weights that learn.
        arch: the network.
        x: square images (N, C, side, side).
        targets: labels, and logits (N, K) of the largest.
        config: which losses.
        backward: runs the backward pass of the loss.
    """
    with autocast(x.device):
        logits = supernet(x, arch)
    loss = _student_loss(logits, targets, config)
    # Backward at once, so that only one graph is in memory; gradients add up by themselves.
    backward(loss)
    return loss.detach()


def _student_loss(logits: Tensor, targets: tuple[Tensor, Tensor], config: Sandwich) -> Tensor:
    """The loss against the largest, the labels or both."""
    (y, teacher_NK), share = targets, config.label_share
    # Only what is needed is computed: a supernet's step is many small kernels.
    if share == 0:
        return distil(config.distillation, logits, teacher_NK)
    of_labels = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
    if share == 1:
        return of_labels
    return share * of_labels + (1 - share) * distil(config.distillation, logits, teacher_NK)


def label_step(
    supernet: Supernet,
    arch: Arch,
    x: Tensor,
    y: Tensor,
    config: Sandwich,
    noise: tuple[int, int],
    extra_loss: Callable[[Tensor], Tensor] | None = None,
    backward: Backward | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one regularised network that learns from labels.

    Args:
        supernet: the weights that learn.
        arch: the network.
        x: square images (N, C, side, side).
        y: classes (N,) or class probabilities (N, K).
        config: its regularisation and label smoothing.
        noise: a seed and a number that together decide dropout and drop-connect.
        extra_loss: a function of the logits that is added to the label loss.
        backward: runs the backward pass of the loss; None: gradients are added, and nothing else.

    Returns:
        Its logits (N, K) and its loss, both detached.
    """
    generator = torch_generator(x.device, noise[0], "regularise", noise[1])
    first_stage = 0
    if config.drop_connect_stages:
        first_stage = len(supernet.space.stages) - config.drop_connect_stages
    regularise = Regularisation(config.dropout, config.drop_connect, first_stage, generator)
    with autocast(x.device):
        logits = supernet(x, arch, regularise)
    # The loss in float32: bfloat16 keeps 8 bits of a logit, too few for log-probabilities.
    loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
    if extra_loss is not None:
        loss = loss + extra_loss(logits)
    (backward or Passes().backward)(loss)
    return logits.detach(), loss.detach()


@torch.no_grad()
def label_losses(
    supernet: Supernet, archs: list[Arch], x: Tensor, y: Tensor, label_smoothing: float
) -> list[float]:
    """Loss of each architecture on the batch, with batch statistics and without regularisation.

    Args:
        supernet: in train mode.
        archs: the architectures.
        x: square images (N, C, side, side).
        y: classes (N,) or class probabilities (N, K).
        label_smoothing: as in training.
    """
    losses = []
    for arch in archs:
        with autocast(x.device):
            logits = supernet(x, arch)
        losses.append(F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing))
    # One synchronisation with the device for all of them: the judge needs numbers to compare.
    return torch.stack(losses).tolist() if losses else []
