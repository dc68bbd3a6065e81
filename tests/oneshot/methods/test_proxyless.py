"""ProxylessNAS and FBNet, by the formulas of their papers and of ProxylessNAS's released code."""

import math

import pytest
import torch
from chains import small_chain
from torch import Tensor

from engine.data.digits import Digits
from engine.data.sources import load_data
from oneshot.aiming import cost_target
from oneshot.axes.penalty import CostPenalty, PenaltyInputs
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import BinaryGates, GumbelSoft
from oneshot.chains.genotype import ChainGenotype
from oneshot.methods.method import Method
from oneshot.methods.sampled.fbnet import FbNet
from oneshot.methods.sampled.path_adam import PathAdam
from oneshot.methods.sampled.proxyless import Baseline, Proxyless, ProxylessR
from oneshot.objectives.building import image_objective
from oneshot.searcher import Searcher

CPU, NOW = torch.device("cpu"), Progress(0, 1)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_steps_are_those_of_the_released_code() -> None:
    """Ten steps of the architecture, layer by layer and number by number."""
    space, method = small_chain(), Proxyless()
    alphas = method.start(space, 0, CPU)
    ours = alphas.operations["chain"]
    optimizer = method.optimizer(space, alphas)
    assert isinstance(optimizer, PathAdam)
    # One parameter a layer, and Adam that leaves out those whose gradient is None.
    theirs = [torch.nn.Parameter(row.detach().clone()) for row in ours]
    adam = torch.optim.Adam(theirs, 1e-3, (0.0, 0.999))
    moved = skipped = 0
    for step in range(10):
        (weights,) = method.weigh_edges(space, alphas, NOW, draws(step)).values()
        upstream_EO = torch.randn(ours.shape, generator=draws(100 + step))
        optimizer.zero_grad()
        (weights.weight_EO * upstream_EO).sum().backward()
        optimizer.step()

        assert weights.active is not None
        before = [row.detach().clone() for row in theirs]
        for row, paths, gates, upstream in zip(
            theirs, weights.active, weights.weight_EO.detach(), upstream_EO, strict=True
        ):
            assert len(paths) == 2 and gates.sum() == 1
            active = int(gates.argmax())
            row.grad = None
            if space.operations[active] == "skip":
                skipped += 1
                continue
            row.grad = gradient_of_two(row.detach(), list(paths), upstream)
            moved += 1
        adam.step()
        for row, old, paths in zip(theirs, before, weights.active, strict=True):
            if row.grad is not None:
                two = list(paths)
                offset = math.log(sum(row.data[two].exp()) / sum(old[two].exp()))
                row.data[two] -= offset
        torch.testing.assert_close(ours.detach(), torch.stack([row.detach() for row in theirs]))
    assert moved > 5 and skipped > 2


def gradient_of_two(alpha_O: Tensor, paths: list[int], upstream_O: Tensor) -> Tensor:
    """dL / dalpha_i = sum over j of dL / dg_j p_j (delta_ij - p_i), with the softmax p of two paths."""
    p = alpha_O[paths].softmax(0)
    gradient = torch.zeros_like(alpha_O)
    for i in range(2):
        for j in range(2):
            gradient[paths[i]] += upstream_O[paths[j]] * p[j] * (float(i == j) - p[i])
    return gradient


def test_the_weights_step_runs_one_path_as_often_as_it_is_probable() -> None:
    alpha_EO = torch.tensor([[1.0, 0.0, 2.0, 5.0]])
    allowed_EO = torch.tensor([[True, True, True, False]])
    gates, counts = BinaryGates(), torch.zeros(4)
    generator = draws(0)
    with torch.no_grad():
        for _ in range(4000):
            weights = gates.mix(alpha_EO, allowed_EO, NOW, generator)
            assert weights.active_EO is not None and weights.expected_EO is None
            assert weights.active_EO.sum() == 1
            counts += weights.active_EO[0]
    expected = torch.tensor([1.0, 0.0, 2.0, -math.inf]).softmax(0)
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_the_expected_cost_is_of_the_two_paths() -> None:
    """As the code's `current_prob_over_ops`, whose latency enters the loss by its logarithm."""
    alpha_EO = torch.tensor([[0.3, -0.2, 0.7]], requires_grad=True)
    weights = BinaryGates().given(alpha_EO, torch.tensor([[2, 0]]), torch.tensor([[0]]))
    assert weights.runs().tolist() == [[True, False, True]]
    torch.testing.assert_close(weights.weight_EO, torch.tensor([[1.0, 0.0, 0.0]]))
    cost_EO = torch.tensor([[30.0, 20.0, 10.0]])
    penalty = CostPenalty(of="macs", form="power", ref=25)
    inputs = PenaltyInputs(
        space=small_chain(),
        alphas={"chain": alpha_EO},
        edge_weights={"chain": weights},
        relaxation=BinaryGates(),
        progress=NOW,
        costs={"chain": cost_EO},
        constant=5.0,
    )
    loss = penalty(torch.tensor(2.0), inputs)
    p = torch.tensor([0.3, 0.7]).softmax(0)
    expected = 5 + 30 * p[0] + 10 * p[1]
    torch.testing.assert_close(loss, 0.2 * 2.0 * (expected.log() / math.log(25)) ** 0.3)
    (gradient,) = torch.autograd.grad(loss, alpha_EO)
    assert gradient[0, 1] == 0 and gradient[0, 0] == pytest.approx(-float(gradient[0, 2]))


def test_all_paths_have_the_gradient_of_the_whole_softmax() -> None:
    alpha_EO = torch.randn(3, 4, generator=draws(1), requires_grad=True)
    gates = BinaryGates(paths="all")
    weights = gates.mix(alpha_EO, torch.ones(3, 4, dtype=torch.bool), NOW, draws(2))
    assert weights.active is None and weights.active_EO is None
    assert weights.weight_EO.detach().sum(1).tolist() == [1.0, 1.0, 1.0]
    upstream_EO = torch.randn(3, 4, generator=draws(3))
    (ours,) = torch.autograd.grad((weights.weight_EO * upstream_EO).sum(), alpha_EO, retain_graph=True)
    (whole,) = torch.autograd.grad((alpha_EO.softmax(-1) * upstream_EO).sum(), alpha_EO)
    torch.testing.assert_close(ours, whole)


def test_the_baseline_follows_as_in_the_code() -> None:
    baseline = Baseline()
    assert baseline.follow(0.5, 0.99) == 0.5
    assert baseline.follow(0.7, 0.99) == pytest.approx(0.5 + 0.99 * 0.2)
    # As many networks a step, and as far from accuracy to cost, as in the code.
    assert (ProxylessR().samples, ProxylessR().updates, ProxylessR().tradeoff) == (10, 300, 0.1)


@pytest.mark.parametrize("method", [Proxyless(), ProxylessR()])
def test_only_a_gradient_weighs_the_cost_with_a_factor(method: Method) -> None:
    space, cpu = small_chain(), torch.device("cpu")
    images = load_data(Digits(val=0.5), cpu, 0)
    objective = image_objective(space, method, images, 16, 8, 64, 0)
    target = cost_target(space, method, objective, 50, "45k", None)
    found, report = Searcher(method, space, objective, 0, 50, target=target).final_genotype()
    assert isinstance(found, ChainGenotype) and report is not None
    assert found.cost(objective.image)[0] == report.found <= 45_000
    assert (report.factor is None) == (method.name == "proxyless_r")


def test_fbnets_temperature_and_loss() -> None:
    method = FbNet()
    relaxation = method.relaxation
    assert isinstance(relaxation, GumbelSoft)
    assert relaxation.tau(Progress(0, 90)) == 5.0
    assert relaxation.tau(Progress(10, 90)) == pytest.approx(5 * math.exp(-0.45))
    # alpha CE log(LAT)^beta with alpha 0.2 and beta 0.6 (equation 2 and section 4.2).
    alpha_EO, gumbel_EO = torch.randn(2, 3, generator=draws(4)), torch.randn(2, 3, generator=draws(5))
    weights = relaxation.given(alpha_EO, gumbel_EO, 2.0)
    cost_EO = torch.tensor([[100.0, 200.0, 0.0], [50.0, 70.0, 90.0]])
    (penalty,) = method.penalties
    inputs = PenaltyInputs(
        space=small_chain(),
        alphas={"chain": alpha_EO},
        edge_weights={"chain": weights},
        relaxation=relaxation,
        progress=NOW,
        costs={"chain": cost_EO},
        constant=10.0,
    )
    latency = 10 + (((alpha_EO + gumbel_EO) / 2).softmax(-1) * cost_EO).sum()
    torch.testing.assert_close(penalty(torch.tensor(1.7), inputs), 0.2 * 1.7 * latency.log() ** 0.6)
