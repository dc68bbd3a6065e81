"""AlphaNet's divergence: its gradient is the paper's, its value is right, both are finite for all logits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ofa.training.losses import (
    AlphaDivergence,
    SoftCrossEntropy,
    alpha_divergence,
    distil,
    soft_cross_entropy,
)

Loss = Callable[..., torch.Tensor]
HUGE = 3.4e38
ALPHAS = [-2.0, -1.0, -0.5, 0.0, 0.0005, 0.3, 1.0, 2.0]


def logits(images: int = 6, classes: int = 5, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = scale * torch.randn(images, classes, generator=generator)
    return student.requires_grad_(), scale * torch.randn(images, classes, generator=generator)


def softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def paper(
    student: torch.Tensor, teacher: torch.Tensor, alpha: float, clip: float
) -> tuple[list[float], list[list[float]]]:
    """(divergence, gradient by the logits) of each image, in Python's doubles, with all sums written out."""
    values, gradients = [], []
    for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(z), softmax(t)
        classes = range(len(q))
        ratio = [p[k] / q[k] for k in classes]
        if alpha == 1:
            f, rho = [r * math.log(r) for r in ratio], ratio
        elif abs(alpha) < 1e-3:
            logs = [math.log(min(r, clip)) for r in ratio]
            f, rho = [-log for log in logs], [log - 1 for log in logs]
        else:
            base = 1 / (alpha * (alpha - 1))
            power = [min(r**alpha, clip) for r in ratio]
            f, rho = [w * base - base for w in power], [w / alpha + base for w in power]
        values.append(sum(q[k] * f[k] for k in classes))
        gradients.append([-sum(q[k] * rho[k] * ((k == j) - q[j]) for k in classes) for j in classes])
    return values, gradients


@pytest.mark.parametrize("clip", [5.0, 1.5, 1e6])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_alpha_is_the_paper(alpha: float, clip: float) -> None:
    student, teacher = logits()
    loss = alpha_divergence(student, teacher, alpha, alpha, clip)
    loss.backward()
    values, gradients = paper(student, teacher, alpha, clip)
    assert loss.item() == pytest.approx(np.mean(values), rel=1e-4)
    torch.testing.assert_close(
        student.grad.double(), torch.tensor(gradients, dtype=torch.float64) / 6, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_unclipped_gradient_is_that_of_the_divergence(alpha: float) -> None:
    student, teacher = logits(images=3, classes=4, scale=1.0)
    alpha_divergence(student, teacher, alpha, alpha, 1e6).backward()
    step = 1e-5
    for i, j in np.ndindex(3, 4):
        nudge = torch.zeros(3, 4, dtype=torch.float64)
        nudge[i, j] = step
        above, below = (
            np.mean(paper(student.detach().double() + s * nudge, teacher.double(), alpha, 1e6)[0])
            for s in (1, -1)
        )
        assert student.grad[i, j].item() == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-5)


def test_clipped_gradient_is_not() -> None:
    student, teacher = (
        torch.tensor([[3.0, 0.0]], requires_grad=True),
        torch.tensor([[0.0, 3.0]]),
    )  # r^-1 = 20 and 1/20
    alpha_divergence(student, teacher, -1, -1, 5).backward()
    step = 1e-5
    ends = [
        paper(torch.tensor([[3.0 + s, 0.0]], dtype=torch.float64), teacher.double(), -1, 5)[0][0]
        for s in (step, -step)
    ]
    assert student.grad[0, 0].item() == pytest.approx(2 * (ends[0] - ends[1]) / (2 * step), rel=0.05), (
        "the paper's is about twice as steep"
    )


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_limits_are_continuous(limit: float) -> None:
    student, teacher = logits(scale=1.0)
    found = []
    for alpha in (limit, limit - 0.002, limit + 0.002):
        loss = alpha_divergence(student, teacher, alpha, alpha, 1e6)
        found.append((loss.item(), torch.autograd.grad(loss, student)[0]))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=0.01)
        torch.testing.assert_close(gradient, found[0][1], rtol=0.02, atol=2e-4)


def test_each_image_takes_the_larger_divergence() -> None:
    student, teacher = logits(images=40)
    loss = alpha_divergence(student, teacher)
    loss.backward()
    minus, plus = paper(student, teacher, -1, 5), paper(student, teacher, 1, 5)
    left = [a > b for a, b in zip(minus[0], plus[0], strict=True)]
    assert 5 < sum(left) < 35, "both must occur"
    assert loss.item() == pytest.approx(np.mean(np.maximum(minus[0], plus[0])), rel=1e-4)
    wanted = [m if first else p for m, p, first in zip(minus[1], plus[1], left, strict=True)]
    torch.testing.assert_close(
        student.grad.double(), torch.tensor(wanted, dtype=torch.float64) / 40, rtol=1e-4, atol=1e-6
    )


def test_kl_has_the_gradient_of_soft_cross_entropy() -> None:
    student, teacher = logits(scale=30.0)
    one = torch.autograd.grad(alpha_divergence(student, teacher, 1, 1), student)[0]
    torch.testing.assert_close(one, torch.autograd.grad(soft_cross_entropy(student, teacher), student)[0])


ROWS = {
    "zero": [0.0, 0.0, 0.0],
    "one hot": [1e4, 0.0, 0.0],
    "another": [0.0, 0.0, 1e4],
    "both signs": [1e4, -1e4, 0.0],
    "huge": [HUGE, -HUGE, 0.0],
    "huge again": [-HUGE, HUGE, HUGE],
    "all huge": [HUGE, HUGE, HUGE],
    "all minus huge": [-HUGE, -HUGE, -HUGE],
    "tiny": [1e-45, 0.0, -1e-45],
    "ninety": [90.0, 0.0, -90.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alphas", [(-1, 1), (0, 1), (-3, 3), (0.5, 0.5)])
def test_finite_for_all_logits(alphas: tuple[float, float], dtype: torch.dtype) -> None:
    for student, teacher in ((s, t) for s in ROWS.values() for t in ROWS.values()):
        z = torch.tensor([student], dtype=torch.float32).clamp(-3.3e38, 3.3e38).to(dtype).requires_grad_()
        loss = alpha_divergence(
            z, torch.tensor([teacher], dtype=torch.float32).clamp(-3.3e38, 3.3e38).to(dtype), *alphas
        )
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite(), (student, teacher)
        assert z.grad.isfinite().all(), (student, teacher)
        if student == teacher:
            assert loss.item() == pytest.approx(0, abs=1e-6)
            torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-6)


def test_a_student_that_is_surely_wrong_still_learns() -> None:
    z = torch.tensor([[HUGE, -HUGE, 0.0]], requires_grad=True)
    alpha_divergence(z, torch.tensor([[0.0, 1e4, 0.0]])).backward()
    torch.testing.assert_close(z.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_not_hidden(bad: float) -> None:
    for student, teacher in (([bad, 0.0], [0.0, 0.0]), ([0.0, 0.0], [bad, 0.0])):
        assert alpha_divergence(torch.tensor([student]), torch.tensor([teacher])).isnan()


def test_computed_in_float32_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits()
    student, teacher = student.detach().bfloat16().requires_grad_(), teacher.bfloat16().requires_grad_()
    loss = alpha_divergence(student, teacher)
    loss.backward()
    assert loss.item() == alpha_divergence(student.float(), teacher.float()).item()
    assert student.grad.dtype == torch.bfloat16
    assert teacher.grad is None


def test_the_configuration_picks_the_loss() -> None:
    student, teacher = logits()
    assert distil(SoftCrossEntropy(), student, teacher) == soft_cross_entropy(student, teacher)
    config = AlphaDivergence(alpha_minus=-0.5, alpha_plus=2, clip=3)
    assert distil(config, student, teacher) == alpha_divergence(student, teacher, -0.5, 2, 3)
