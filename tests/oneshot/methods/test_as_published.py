"""Steps and settings of methods as their released codes have them, written here from the algorithm."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.command.cli import parse
from engine.data.digits import Digits
from engine.data.sources import load_data
from oneshot.axes.auxiliary_skip import AuxiliarySkip
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import Method
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]


def method_on(space: str, name: str) -> Method:
    return parse(Search, ["--method", name, "--space", space]).method


@pytest.fixture(scope="module")
def batches() -> list[tuple[Batch, Batch]]:
    """Four pairs of batches in double precision."""
    data = load_data(Digits(val=0.5), CPU, 0)
    found = []
    for number in range(4):
        pair = [next(data.train_batches(8, number, subset=part)) for part in ("train", "val")]
        found.append(tuple((x.double(), y) for x, y in pair))
    return found


def searcher(name: str, epochs: int) -> Searcher:
    """A search of the method on NAS-Bench-201 as published, with a small network in double precision."""
    method = method_on("nasbench201", name)
    space = method.offered(find_space("nasbench201"))
    torch.manual_seed(0)
    network = search_network(space, method, 4, 1, 10, 1)
    objective = ImageObjective(network, load_data(Digits(val=0.5), CPU, 0), 8, method.level != "bilevel")
    network.double()
    found = Searcher(method, space, objective, 0, epochs)
    for kind, alpha_EO in found.state.alphas.operations.items():
        alpha_EO.data = alpha_EO.data.double()
        assert kind == "cell"
    return found


def plain_sgd(network: nn.Module, rate: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=3e-4)


def close(found: Searcher, network: nn.Module, alpha: Tensor) -> None:
    # Sums in another order differ by some 1e-17, which Adam divides by small gradients.
    exact = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(found.state.alphas.operations["cell"], alpha, **exact)
    for ours, theirs in zip(found.state.objective.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **exact)


@pytest.mark.parametrize("name", ["beta_darts", "darts_minus"])
def test_four_steps_on_nasbench201_are_those_of_the_released_code(
    name: str, batches: list[tuple[Batch, Batch]]
) -> None:
    """Alphas first, by Adam; then weights by plain momentum with decay 3e-4 and gradients cut at norm 5."""
    epochs = 100 if name == "beta_darts" else 50
    found = searcher(name, epochs)
    network = copy.deepcopy(found.state.objective.network)
    alpha = found.state.alphas.operations["cell"].detach().clone().requires_grad_()
    adam = torch.optim.Adam([alpha], 3e-4, (0.5, 0.999), weight_decay=1e-3)
    optimizer = plain_sgd(network, 0.025)
    for epoch, (train, valid) in enumerate(batches, start=20):
        found.state.progress = Progress(epoch, epochs)
        found.step(0, train, valid)

        def loss(batch: Batch, epoch: int = epoch) -> Tensor:
            fading = torch.tensor(1 - epoch / 50, dtype=torch.float64)
            skip = fading if name == "darts_minus" else None
            weights = {"cell": EdgeWeights(alpha.softmax(-1), skip=skip)}
            return F.cross_entropy(network(batch[0], weights), batch[1])

        value = loss(valid)
        if name == "beta_darts":
            value = value + 50 * epoch / 100 * alpha.logsumexp(-1).mean()
        adam.zero_grad()
        value.backward()
        adam.step()
        optimizer.param_groups[0]["lr"] = 1e-3 + 0.012 * (1 + math.cos(math.pi * epoch / epochs))
        optimizer.zero_grad()
        loss(train).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        close(found, network, alpha)


def test_four_steps_of_gaea_on_nasbench201_are_those_of_the_released_code(
    batches: list[tuple[Batch, Batch]],
) -> None:
    """Theta first, then the weights, each on a batch of its own; `none` does not compete."""
    found = searcher("gaea", 25)
    network = copy.deepcopy(found.state.objective.network)
    theta = torch.full((6, 4), 0.25, dtype=torch.float64, requires_grad=True)
    optimizer = plain_sgd(network, 0.025)

    def loss(batch: Batch) -> Tensor:
        with_none = F.pad(theta, (1, 0))
        return F.cross_entropy(network(batch[0], {"cell": EdgeWeights(with_none)}), batch[1])

    for epoch, (train, other) in enumerate(batches):
        found.state.progress = Progress(epoch, 25)
        found.step(0, train, other)
        (gradient,) = torch.autograd.grad(loss(other), theta)
        with torch.no_grad():
            moved = (theta * torch.exp(-0.1 * gradient)).clamp(min=1e-5)
            theta.copy_(moved / moved.sum(-1, keepdim=True))
        optimizer.param_groups[0]["lr"] = 1e-3 + 0.012 * (1 + math.cos(math.pi * epoch / 50))
        optimizer.zero_grad()
        loss(train).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        close(found, network, F.pad(theta, (1, 0)))


def test_the_two_levels_of_gaea_released_see_all_images_in_other_orders() -> None:
    data = load_data(Digits(val=0.5), CPU, 0)
    network = nn.Linear(1, 1)
    objective = ImageObjective(network, data, 100, single_level=True, two_batches=True)
    assert objective.steps(0) == data.size_of("both") // 100
    pairs = list(objective.batches(3, 0))
    assert len(pairs) == objective.steps(3)
    assert not torch.equal(pairs[0][0][1], pairs[0][1][1])
    # A resumed search goes on in the middle of both orders.
    again = list(objective.batches(3, 5))
    for ours, theirs in zip(again, pairs[5:], strict=True):
        assert torch.equal(ours[0][0], theirs[0][0]) and torch.equal(ours[1][0], theirs[1][0])
    joint = next(ImageObjective(network, data, 100, single_level=True).batches(0, 0))
    assert joint[0] is joint[1]


def test_settings_on_nasbench201() -> None:
    """(weights first, Nesterov, decay) of each method: AutoDL-Projects' for those that it ran only."""

    def settings(name: str) -> tuple[Any, ...]:
        method = method_on("nasbench201", name)
        return method.weights_first, method.sgd.nesterov, method.sgd.weight_decay

    for name in ("darts", "gdas", "random_ws"):
        assert settings(name) == (True, True, 5e-4)
    for name in ("beta_darts", "darts_minus", "gaea", "pc_darts", "gaea_pc_darts"):
        assert settings(name) == (False, False, 3e-4)
    gaea = parse(Search, ["--method", "gaea", "--space", "nasbench201"])
    assert (gaea.width, gaea.method.exclude_none) == (24, True)
    assert parse(Search, ["--method", "gaea", "--space", "nasbench201", "--channels", "8"]).width == 8
    assert method_on("darts", "gaea").channels == 16
    assert method_on("darts", "darts_minus").auxiliary_skip == AuxiliarySkip()


def test_the_rate_of_enas_swings_on_nasbench201_and_restarts_elsewhere() -> None:
    bench, own = method_on("nasbench201", "enas"), method_on("darts", "enas")
    assert (bench.epochs, own.epochs) == (250, 310)
    rates = [bench.sgd.learning_rate(Progress(epoch, 250)) for epoch in range(250)]
    wanted = [5e-4 + 0.02475 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(250)]
    assert rates == pytest.approx(wanted)
    restarts = [own.sgd.learning_rate(Progress(epoch, 310)) for epoch in (0, 9, 10, 29, 30, 69, 70)]
    assert restarts[::2] == pytest.approx([0.05] * 4) and max(restarts[1::2]) < 0.0025
    stays = WeightSgd(cosine_epochs=10)
    assert stays.learning_rate(Progress(15, 20)) == stays.lr_min
