"""Draws of a Dirichlet distribution from noise that is given, with pathwise gradients.

Gamma variables by Marsaglia and Tsang (2000, "A Simple Method for Generating Gamma Variables"): proposals
from normal numbers, of which the first that is accepted counts. torch.distributions takes no generator, and
would draw on the device; here the noise is drawn on CPU, and the host waits for nothing.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.compute.device import send_together

PROPOSALS = 8  # each is accepted with a probability of 0.95 or more, so all fail once in 10^10 draws


class GammaNoise(NamedTuple):
    """What a tensor of gamma variables is drawn from.

    Args:
        normal: (PROPOSALS, ...).
        uniform: (PROPOSALS, ...), in (0, 1].
        power: (...), in (0, 1].
    """

    normal: Tensor
    uniform: Tensor
    power: Tensor


def gamma_noise(like: Tensor, draws: torch.Generator) -> GammaNoise:
    """Noise for gamma variables of the shape of `like`, drawn on CPU and moved to its device."""
    proposals = (PROPOSALS, *like.shape)
    normal = torch.randn(proposals, generator=draws, dtype=like.dtype)
    # From [0, 1) to (0, 1], since their logarithms are taken.
    uniform = 1 - torch.rand(proposals, generator=draws, dtype=like.dtype)
    power = 1 - torch.rand(like.shape, generator=draws, dtype=like.dtype)
    return GammaNoise(*send_together([normal, uniform, power], like.device))


def log_gamma_variables(shape: Tensor, noise: GammaNoise) -> Tensor:
    """The logarithms of gamma variables of shape parameters `shape` > 0 and scale 1.

    Logarithms, since variables of a small shape are often less than the least float.
    """
    # Of shape + 1, for which proposals are accepted nearly always; the power below makes it `shape` again.
    d = shape + 2 / 3
    root = 1 + noise.normal / (9 * d).sqrt()
    log_v = 3 * root.clamp_min(1e-12).log()
    limit = 0.5 * noise.normal.square() + d - d * log_v.exp() + d * log_v
    accepted = (root > 0) & (noise.uniform.log() < limit)
    # argmax gives the first of equal numbers: the first proposal that is accepted.
    first = accepted.int().argmax(0, keepdim=True)
    return d.log() + log_v.gather(0, first)[0] + noise.power.log() / shape


class _Pathwise(torch.autograd.Function):
    """A draw as a function of its concentrations: the value is given, the gradient is the pathwise one."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, sample: Tensor) -> Tensor:
        """The sample."""
        ctx.save_for_backward(concentration, sample)
        return sample.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """As torch's own Dirichlet: each coordinate alone is a Beta variable, whose distribution is known."""
        concentration, sample = ctx.saved_tensors
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        limits = torch.finfo(sample.dtype)
        # Away from 0 and 1, where the formula divides by 0.
        inside = sample.clamp(limits.tiny, 1 - limits.eps)
        slope = torch._dirichlet_grad(inside, concentration, total)
        return slope * (gradient - (sample * gradient).sum(-1, keepdim=True)), None


def dirichlet(concentration: Tensor, noise: GammaNoise) -> Tensor:
    """A draw (..., O), whose rows sum to 1, with a gradient in the concentrations."""
    with torch.no_grad():
        sample = log_gamma_variables(concentration, noise).softmax(-1)
    drawn: Tensor = _Pathwise.apply(concentration, sample)
    return drawn
