"""Relaxations that draw, against their formulas."""

import torch

from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import GumbelSoft

ALL = torch.ones(1, 3, dtype=torch.bool)


def test_snas_weighs_by_softmax_of_noisy_logits() -> None:
    alpha = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.double, requires_grad=True)
    noise = torch.tensor([[0.3, -1.0, 0.2]], dtype=torch.double)
    found = GumbelSoft().given(alpha, noise, tau=0.5)
    powers = torch.exp(torch.tensor([2.6, 2.0, 1.4], dtype=torch.double))
    torch.testing.assert_close(found.weight_EO[0], powers / powers.sum())
    assert found.active is None and found.offset_E is None
    # The derivative of a softmax at temperature 0.5: p_0 (1 - p_0) / 0.5.
    share = powers[0] / powers.sum()
    (gradient,) = torch.autograd.grad(found.weight_EO[0, 0], alpha)
    torch.testing.assert_close(gradient[0, 0], share * (1 - share) / 0.5)


def test_snas_operations_that_do_not_compete_have_no_weight() -> None:
    allowed = torch.tensor([[True, False, True]])
    weight = GumbelSoft().mix(torch.zeros(1, 3), allowed, Progress(0, 10), torch.Generator()).weight_EO
    assert weight[0, 1] == 0 and weight.sum() == 1


def test_the_largest_weight_of_snas_is_drawn_with_the_probability_of_softmax() -> None:
    alpha = torch.tensor([[0.0, 1.0, -1.0]]).expand(20_000, 3)
    allowed = ALL.expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    weight = GumbelSoft().mix(alpha, allowed, Progress(0, 10), generator).weight_EO
    shares = torch.bincount(weight.argmax(-1), minlength=3) / 20_000
    torch.testing.assert_close(shares, alpha[0].softmax(-1), atol=0.01, rtol=0)


def test_temperatures() -> None:
    # SNAS's scheduler: (1 - n / 150) (1 - 0.03) + 0.03 after n steps, and epoch e comes after e + 1 of them.
    snas = GumbelSoft()
    for epoch in range(150):
        wanted = (1 - (epoch + 1) / 150) * 0.97 + 0.03
        assert abs(snas.tau(Progress(epoch, 150)) - wanted) < 1e-12
    # FBNet: 5 exp(-0.045 epoch).
    fbnet = GumbelSoft(tau_start=5.0, tau_factor=0.956)
    assert fbnet.tau(Progress(0, 90)) == 5.0
    assert abs(fbnet.tau(Progress(2, 90)) - 5.0 * 0.956**2) < 1e-12
