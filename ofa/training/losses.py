"""Losses by which a student learns from its teacher.

They are the soft cross-entropy of BigNAS (2020, arXiv:2003.11142) and the alpha-divergence of AlphaNet (2021,
arXiv:2102.07954).
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.config import Config

# -87.3: smaller probabilities count as the smallest normal float32.
LOG_TINY = math.log(torch.finfo(torch.float32).tiny)
# An alpha this close to 0 or 1 is treated as 0 or 1: the formula divides by alpha (alpha - 1) a difference
# that is then mostly rounding error.
NEAR = 1e-3

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SoftCrossEntropy(Config):
    """The loss of BigNAS (2020, arXiv:2003.11142) and AttentiveNAS (2021, arXiv:2011.09011)."""

    name: Literal["soft_cross_entropy"] = "soft_cross_entropy"


class AlphaDivergence(Config):
    """The loss of AlphaNet (2021, arXiv:2102.07954): for each image the larger of two alpha-divergences."""

    name: Literal["alpha_divergence"] = "alpha_divergence"
    alpha_minus: Finite = Field(
        -1.0, description="below 0 it punishes a student for probability where its teacher sees little"
    )
    alpha_plus: Finite = Field(
        1.0, description="it punishes a student that misses what its teacher thinks likely; 1 is KL"
    )
    clip: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="upper bound of (teacher / student)^alpha; at alpha 0 of teacher / student, none at 1",
    )


Distillation = Annotated[AlphaDivergence | SoftCrossEntropy, Field(discriminator="name")]


def distil(config: Distillation, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The loss of a student against its teacher.

    Args:
        config: which loss.
        student_NK: logits of the student.
        teacher_NK: logits of the teacher, which get no gradient.

    Returns:
        A float32 scalar.
    """
    match config:
        case SoftCrossEntropy():
            return soft_cross_entropy(student_NK, teacher_NK)
        case AlphaDivergence(alpha_minus=minus, alpha_plus=plus, clip=clip):
            return alpha_divergence(student_NK, teacher_NK, minus, plus, clip)


def soft_cross_entropy(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """-sum_k softmax(teacher)_k log_softmax(student)_k, mean over the batch, in float32.

    Both arguments are logits (N, K). The temperature is 1 and the teacher is detached.

    Source: BigNAS (2020, arXiv:2003.11142), in-place distillation.
    """
    target = teacher_NK.detach().float().softmax(1)
    return F.cross_entropy(student_NK.float(), target)


def alpha_divergence(
    student_NK: Tensor,
    teacher_NK: Tensor,
    alpha_minus: float = -1.0,
    alpha_plus: float = 1.0,
    clip: float = 5.0,
) -> Tensor:
    """Adaptive alpha-divergence of AlphaNet (2021, arXiv:2102.07954), mean over the batch, in float32.

    p and q are the softmax of teacher and student, r = p / q, and rho is the paper's weight of a class, which
    `_divergence` returns as q rho. For each image the alpha whose divergence is larger decides. The value is
    the mean of those divergences: 0 where student and teacher agree. The reference code reports -sum_k q_k
    rho_k log q_k, with q and rho held constant; its gradient is the paper's, but its value means nothing. The
    gradient here is that of the reference code's expression:

        d/dlogits = q sum_k(q_k rho_k) - q rho

    It is the true gradient of the value wherever r^alpha is not clipped and the two divergences differ.
    Where r^alpha is clipped it is not: the value then grows with slope clip / (alpha (alpha - 1)) in q, while
    the paper clips the factor r^alpha of the gradient, which is clip / -alpha. Adding a constant to rho
    changes nothing, since q sums to 1.

    Value and gradient are finite for all finite logits: everything is built from log_softmax, products q
    r^alpha are taken as one exponential, and log-probabilities end at that of the smallest normal float32.
    Logits that are not finite give nan.

    Args:
        student_NK: logits of the student.
        teacher_NK: logits of the teacher, which get no gradient.
        alpha_minus, alpha_plus: the two alphas.
        clip: upper bound of r^alpha; within 0.001 of alpha 0 that of r, as in the reference code, which has
            none near alpha 1.

    Returns:
        A float32 scalar.
    """
    z_NK = student_NK.float()
    # Detached: the gradient is given below and not autograd's. Clamped, so that no exponential of a
    # difference overflows.
    logp_NK = teacher_NK.detach().float().log_softmax(1).clamp(min=LOG_TINY)
    logq_NK = z_NK.detach().log_softmax(1).clamp(min=LOG_TINY)
    minus_N, left_NK = _divergence(logp_NK, logq_NK, alpha_minus, clip)
    plus_N, right_NK = _divergence(logp_NK, logq_NK, alpha_plus, clip)
    left_wins = minus_N > plus_N
    weight_NK = torch.where(left_wins[:, None], left_NK, right_NK)
    gradient_NK = logq_NK.exp() * weight_NK.sum(1, keepdim=True) - weight_NK
    # This sum is zero and has that gradient. Autograd's own would be another one where r^alpha is clipped.
    carrier_N = ((z_NK - z_NK.detach()) * gradient_NK).sum(1)
    return (torch.where(left_wins, minus_N, plus_N) + carrier_N).mean()


def _divergence(logp_NK: Tensor, logq_NK: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """Divergence (N,) and q rho (N, K) of teacher p and student q, given as logarithms; r = p / q.

    rho comes without its constant, which changes no gradient.
    """
    q_NK, logr_NK = logq_NK.exp(), logp_NK - logq_NK
    if abs(alpha - 1) < NEAR:  # f = r log r, rho = r; the reference code does not clip here
        p_NK = logp_NK.exp()
        return (p_NK * logr_NK).sum(1), p_NK
    if abs(alpha) < NEAR:  # f = -log r, rho = log r; the reference code clips r itself here
        qlogr_NK = q_NK * logr_NK.clamp(max=math.log(clip))
        return -qlogr_NK.sum(1), qlogr_NK
    qr_NK = torch.minimum((logq_NK + alpha * logr_NK).exp(), clip * q_NK)  # q clamp(r^alpha, 0, clip)
    return (qr_NK.sum(1) - 1) / (alpha * (alpha - 1)), qr_NK / alpha
