"""Relaxations that draw, against their formulas."""

import math

import torch
from torch import Tensor

from oneshot.axes.dirichlet import dirichlet, gamma_noise
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import Dirichlet, GumbelHard, GumbelSoft, ReinMax, Sigmoid, gumbel_noise

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


def test_dirichlet_draws_as_torch_does() -> None:
    concentration = torch.tensor([0.05, 0.4, 1.0, 3.0], dtype=torch.double)
    many = concentration.expand(40_000, 4)
    sample = dirichlet(many, gamma_noise(many, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(sample.sum(-1), torch.ones(40_000, dtype=torch.double))
    wanted = torch.distributions.Dirichlet(concentration)
    torch.testing.assert_close(sample.mean(0), wanted.mean, atol=4e-3, rtol=0)
    torch.testing.assert_close(sample.var(0), wanted.variance, atol=4e-3, rtol=0)
    # Each coordinate is a Beta variable: the quantiles of its distribution, against draws of torch's own.
    torch.manual_seed(1)
    others = wanted.sample((40_000,))
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.double)
    ours, theirs = sample.quantile(shares, 0), others.quantile(shares, 0)
    torch.testing.assert_close(ours, theirs, atol=0.015, rtol=0)


def test_pathwise_gradients_are_those_of_torch_and_of_the_mean() -> None:
    concentration = torch.tensor([[0.3, 1.2, 2.0]], dtype=torch.double).expand(50_000, 3)
    concentration = concentration.clone().requires_grad_()
    sample = dirichlet(concentration, gamma_noise(concentration, torch.Generator().manual_seed(0)))
    (ours,) = torch.autograd.grad(sample[:, 0].sum(), concentration)
    weight = torch.tensor([1.0, 0.0, 0.0], dtype=torch.double).expand(50_000, 3)
    theirs = torch.distributions.dirichlet._Dirichlet_backward(
        sample.detach(), concentration.detach(), weight
    )
    torch.testing.assert_close(ours, theirs)
    # The mean of coordinate 0 is a_0 / (a_0 + a_1 + a_2) = 0.3 / 3.5; its derivatives:
    wanted = torch.tensor([(3.5 - 0.3) / 3.5**2, -0.3 / 3.5**2, -0.3 / 3.5**2], dtype=torch.double)
    torch.testing.assert_close(ours.mean(0), wanted, atol=4e-3, rtol=0)


def test_drnas_takes_elu_plus_one_and_divides_by_what_competes() -> None:
    alpha = torch.tensor([[0.7, -0.4, 0.1]], dtype=torch.double, requires_grad=True)
    noise = gamma_noise(alpha, torch.Generator().manual_seed(3))
    whole = dirichlet(torch.tensor([[1.7, math.exp(-0.4), 1.1]], dtype=torch.double), noise)
    torch.testing.assert_close(Dirichlet().given(alpha, ALL, noise).weight_EO, whole)
    allowed = torch.tensor([[True, False, True]])
    found = Dirichlet().given(alpha, allowed, noise).weight_EO
    kept = whole[0, 0] + whole[0, 2]
    torch.testing.assert_close(found[0, [0, 2]], whole[0, [0, 2]] / kept)
    (gradient,) = torch.autograd.grad(found[0, 0], alpha)
    assert found[0, 1] == 0
    # What does not compete has no part in the ratio of the others.
    torch.testing.assert_close(gradient[0, 1], torch.zeros((), dtype=torch.double), atol=1e-12, rtol=0)


def test_reinmax_is_the_published_estimator() -> None:
    alpha = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, -0.2]], dtype=torch.double, requires_grad=True)
    gumbel = torch.tensor([[0.0, 5.0, 0.0], [0.1, 0.0, 0.0]], dtype=torch.double)
    found = ReinMax().given(alpha, gumbel, tau=1.3)
    assert found.active_EO is not None and torch.equal(
        found.active_EO, torch.tensor([[False, True, False]] * 2)
    )
    hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.double)
    torch.testing.assert_close(found.weight_EO, hot)
    upstream = torch.tensor([[1.0, -2.0, 0.5], [0.2, 0.1, 3.0]], dtype=torch.double)
    (ours,) = torch.autograd.grad(found.weight_EO, alpha, upstream)

    def through_softmax(p: Tensor, g: Tensor) -> Tensor:
        return p * (g - (p * g).sum(-1, keepdim=True))

    p = alpha.detach().softmax(-1)
    q = ((alpha.detach() / 1.3).softmax(-1) + hot) / 2
    torch.testing.assert_close(ours, 2 * through_softmax(q, upstream) - through_softmax(p, upstream) / 2)


def test_reinmax_is_nearer_to_the_exact_gradient_than_straight_through() -> None:
    alpha = torch.tensor([0.4, -0.3, 0.8], dtype=torch.double)
    value = torch.tensor([0.0, 1.0, 3.0], dtype=torch.double)  # of the three operations

    def loss(weight: Tensor) -> Tensor:
        return ((weight * value).sum(-1) - 1.3) ** 2

    # The exact gradient: the mean over the three possible draws.
    exact_alpha = alpha.clone().requires_grad_()
    mean = (exact_alpha.softmax(-1) * loss(torch.eye(3, dtype=torch.double))).sum()
    (exact,) = torch.autograd.grad(mean, exact_alpha)
    errors = []
    for relaxation in (ReinMax(), GumbelHard()):
        many = alpha.expand(100_000, 3).clone().requires_grad_()
        noise = gumbel_noise(many, torch.Generator().manual_seed(0))
        weight = relaxation.given(many, noise, 1.0).weight_EO
        (gradient,) = torch.autograd.grad(loss(weight).sum(), many)
        errors.append(float((gradient.mean(0) - exact).norm()))
    # A square of the weights is of second order, for which ReinMax has no bias.
    assert errors[0] < 0.03 < errors[1]


def test_reinmax_passes_over_what_does_not_compete() -> None:
    alpha = torch.zeros(1, 3, requires_grad=True)
    allowed = torch.tensor([[True, False, True]])
    found = ReinMax().mix(alpha, allowed, Progress(0, 10), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(found.weight_EO[0, 0], alpha)
    assert found.weight_EO[0, 1] == 0 and gradient.isfinite().all() and gradient[0, 1] == 0


def test_sigmoids_are_independent() -> None:
    alpha = Sigmoid().start(ALL, torch.Generator())
    alpha[0, 0] = 2.0
    weight = Sigmoid().probabilities(alpha, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weight, torch.tensor([[1 / (1 + math.exp(-2)), 0.5, 0.0]]))
