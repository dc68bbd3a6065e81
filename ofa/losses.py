"""What a student learns from its teacher."""

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """-sum_k softmax(teacher)_k log_softmax(student)_k, mean over the batch, in float32; temperature 1. The teacher is detached.

    Source: BigNAS (2020, arXiv:2003.11142), in-place distillation.
    """
    target = teacher_NK.detach().float().softmax(1)
    return F.cross_entropy(student_NK.float(), target)
