"""Architecture gradients and whole search steps equal the recorded ones to 1e-9, and finite differences of
what they stand for."""

from typing import Any

import pytest
import torch
from reference import theirs
from test_network import TOLERANCE, load
from torch import Tensor

from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress
from oneshot.bilevel import (
    BilevelProblem,
    VirtualStep,
    clip_and_step,
    dominant_eigenvalue,
    exact,
    first_order,
    momentum_buffers,
    second_order,
    weight_gradients,
)
from oneshot.methods.darts import Darts
from oneshot.methods.method import Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.objectives.images import ImageLoss
from oneshot.spaces.cells import CellSpace, find_space

NO_DRAWS = torch.Generator()


class Recorded:
    """A recorded search: our network with its weights, alphas and batches."""

    def __init__(self, file: str):
        self.found, self.network, self.names = load(file)
        self.space: CellSpace = find_space("nasbench201" if self.found["kind"] == "nb201" else "darts")
        self.method: Method = PcDarts() if self.found["kind"] == "pcdarts" else Darts()
        kinds = self.space.cells
        values = [alpha.clone().requires_grad_() for alpha in self.found["alphas"]]
        edges = dict(zip(kinds, values[len(kinds) :], strict=False))
        self.alphas = Alphas(dict(zip(kinds, values, strict=False)), edges)
        self.loss = ImageLoss(self.network)

    def batch(self, split: str) -> tuple[Tensor, Tensor]:
        return self.found[f"x{split}"].to(memory_format=torch.channels_last), self.found[f"y{split}"]

    def edge_weights(self) -> dict[str, EdgeWeights]:
        return self.method.weigh_edges(self.space, self.alphas, Progress(0, 1), NO_DRAWS)

    def inner(self, buffers: list[Tensor | None]) -> VirtualStep:
        return VirtualStep(self.found["eta"], self.found["momentum"], self.found["weight_decay"], buffers)

    def ahead(self, train: Any, valid: Any, step: VirtualStep, how: Any = second_order) -> tuple[Tensor, ...]:
        problem = BilevelProblem(
            network=self.network,
            loss=self.loss,
            edge_weights=self.edge_weights,
            penalised=lambda value, _: value,
            alphas=self.alphas.all(),
            train=train,
            valid=valid,
            step=step,
        )
        return how(problem)[1]


def check(ours: tuple[Tensor, ...], wanted: list[Tensor]) -> None:
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["darts_small_a1", "pcdarts_small_a1"])
def test_recorded_gradients_of_alphas(file: str) -> None:
    search = Recorded(file)
    train, valid = search.batch("t"), search.batch("v")
    _, gradients = first_order(
        search.network, lambda: search.loss(valid, search.edge_weights()), search.alphas.all()
    )
    check(gradients, search.found["grad_alpha_first"])
    none: list[Tensor | None] = [None] * len(list(search.network.parameters()))
    check(search.ahead(train, valid, search.inner(none)), search.found["grad_alpha_second"])
    buffers = theirs(search.names, search.found["momentum_buffers"])
    with_momentum = search.inner([buffers[name] for name, _ in search.network.named_parameters()])
    check(search.ahead(train, valid, with_momentum), search.found["grad_alpha_second_mom"])


def drawn(found: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count = len(found["xt"])
    x = torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.double)
    return x.to(memory_format=torch.channels_last), torch.randint(0, 10, (count,), generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("file", ["darts_small_a1", "pcdarts_small_a1"])
def test_three_recorded_steps(file: str, order: str) -> None:
    search = Recorded(file)
    found, recorded = search.found, search.found[f"traj_{order}"]
    optimizer = torch.optim.SGD(
        search.network.parameters(), found["eta"], found["momentum"], weight_decay=found["weight_decay"]
    )
    architecture_optimizer = search.method.optimizer(search.space, search.alphas)
    for seed, wanted in zip(recorded["seeds"], recorded["losses"], strict=True):
        generator = torch.Generator().manual_seed(seed)
        train, valid = drawn(found, generator), drawn(found, generator)
        if order == "first":
            gradients = first_order(
                search.network,
                lambda batch=valid: search.loss(batch, search.edge_weights()),
                search.alphas.all(),
            )[1]
        else:
            gradients = search.ahead(train, valid, search.inner(momentum_buffers(optimizer, search.network)))
        for alpha, gradient in zip(search.alphas.all(), gradients, strict=True):
            alpha.grad = gradient
        architecture_optimizer.step()
        value = search.loss(train, search.edge_weights())
        weight_gradients(search.network, value, optimizer)
        clip_and_step(search.network, optimizer, 5.0)
        assert value.item() == pytest.approx(wanted, rel=1e-9)
    check(tuple(alpha.detach() for alpha in search.alphas.all()), recorded["alphas"])
    compare_state(search, recorded)


def compare_state(search: Recorded, recorded: dict[str, Any]) -> None:
    """Sum and norm of each of their weights, and their running statistics."""
    state = search.network.state_dict()
    for name, of_them in search.names.items():
        blocks = [state[name]] * len(of_them) if "pool_norm" in name else state[name].chunk(len(of_them))
        for block, their in zip(blocks, of_them, strict=True):
            if their in recorded["param_checksums"]:
                total, norm = recorded["param_checksums"][their]
                assert block.sum().item() == pytest.approx(total, rel=1e-9, abs=1e-9)
                assert block.norm().item() == pytest.approx(norm, rel=1e-9)
            elif their in recorded.get("bn", {}):
                torch.testing.assert_close(block, recorded["bn"][their], **TOLERANCE)


def test_three_recorded_steps_with_the_weights_first() -> None:
    search = Recorded("nb201_small_track0")
    recorded = search.found["traj_w_then_alpha"]
    optimizer = torch.optim.SGD(search.network.parameters(), 0.025, 0.9, weight_decay=5e-4, nesterov=True)
    architecture_optimizer = search.method.optimizer(search.space, search.alphas)
    alpha = search.alphas.all()[0]
    for seed, (of_train, of_valid) in zip((1000, 1001, 1002), recorded["losses"], strict=True):
        generator = torch.Generator().manual_seed(seed)
        train, valid = drawn(search.found, generator), drawn(search.found, generator)
        value = search.loss(train, search.edge_weights())
        weight_gradients(search.network, value, optimizer)
        clip_and_step(search.network, optimizer, 5.0)
        after, (alpha.grad,) = first_order(
            search.network, lambda batch=valid: search.loss(batch, search.edge_weights()), [alpha]
        )
        architecture_optimizer.step()
        assert (value.item(), after.item()) == pytest.approx((of_train, of_valid), rel=1e-9)
    check((alpha.detach(),), recorded["alphas"])
    compare_state(search, recorded)


def test_exact_gradient_is_the_finite_difference_of_the_loss_one_step_ahead() -> None:
    search = Recorded("nb201_small_track0")
    alpha = search.alphas.all()[0]
    train, valid = search.batch("t"), search.batch("v")
    names = [name for name, _ in search.network.named_parameters()]
    inner = VirtualStep(0.001, 0.9, 3e-4, [None] * len(names))

    def one_step_ahead(moved_alpha: Tensor) -> Tensor:
        weights = list(search.network.parameters())
        edge_weights = {"cell": EdgeWeights(moved_alpha.softmax(-1))}
        gradients = torch.autograd.grad(search.loss(train, edge_weights), weights)
        moved, _ = inner.ahead(dict(zip(names, (w.detach() for w in weights), strict=True)), gradients)
        return search.loss(valid, edge_weights, moved).detach()

    direction = torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    step = 1e-7  # a longer one crosses kinks of the ReLUs
    sides = [one_step_ahead(alpha.detach() + sign * step * direction) for sign in (1, -1)]
    (gradient,) = search.ahead(train, valid, inner, exact)
    torch.testing.assert_close(
        (gradient * direction).sum(), (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", ["darts_small_a1", "nb201_small_track0"])
def test_second_order_with_a_tiny_difference_is_exact(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneshot.bilevel.EPSILON", 1e-7)
    search = Recorded(file)
    train, valid = search.batch("t"), search.batch("v")
    inner = VirtualStep(0.01, 0.9, 3e-4, [None] * len(list(search.network.parameters())))
    state = {name: value.clone() for name, value in search.network.state_dict().items()}
    ours = search.ahead(train, valid, inner)
    search.network.load_state_dict(state)
    for a, b in zip(ours, search.ahead(train, valid, inner, exact), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.slow
def test_dominant_eigenvalue_is_that_of_the_hessian() -> None:
    search = Recorded("nb201_small_track0")
    alpha = search.alphas.all()[0]
    batch = search.batch("v")

    def value(alpha: Tensor) -> Tensor:
        return search.loss(batch, {"cell": EdgeWeights(alpha.softmax(-1))}, create_graph=True)

    hessian = torch.autograd.functional.hessian(value, alpha.detach()).view(alpha.numel(), -1)
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    ours = dominant_eigenvalue(lambda: value(alpha), [alpha], torch.Generator().manual_seed(0))
    assert ours == pytest.approx(largest, rel=2e-3)


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [([-9.0, -4.0, 0.5, 2.0, 3.0], 3.0), ([-9.0, -5.0, -1.0], -1.0), ([0.0] * 4, 0.0), ([7.0] * 4, 7.0)],
)
def test_the_dominant_eigenvalue_is_the_largest_not_the_largest_in_size(
    eigenvalues: list[float], largest: float
) -> None:
    """On Hessians that are known, indefinite ones among them."""
    count = len(eigenvalues)
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64))
    hessian = rotation @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ rotation.T
    alphas = [torch.zeros(1, dtype=torch.float64, requires_grad=True)]
    alphas.append(torch.zeros(count - 1, dtype=torch.float64, requires_grad=True))

    def value() -> Tensor:
        alpha = torch.cat(alphas)
        return 0.5 * alpha @ hessian @ alpha

    ours = dominant_eigenvalue(value, alphas, generator)
    assert ours == pytest.approx(largest, rel=1e-3, abs=1e-12)
