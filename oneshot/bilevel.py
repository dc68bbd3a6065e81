"""The gradient of the architecture: of first order, of second order by finite differences, and exact.

DARTS (2019, arXiv:1806.09055): alphas follow the validation loss at the weights that one training step would
lead to. A loss here is a pure function of (batch, edge weights, weights), so that weights other than the
network's own are an argument. Whatever is random in it (dropout masks, sampled operations) belongs to the
batch or to the edge weights, and is therefore the same in every forward of one step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from oneshot.axes.edge_weights import NetworkEdgeWeights

EPSILON = 0.01  # length of the two steps along v whose difference gives the Hessian product (DARTS)
Weights = dict[str, Tensor]


class LossFn(Protocol):
    """Mean loss of the network on one batch."""

    def __call__(
        self,
        batch: Any,
        edge_weights: NetworkEdgeWeights,
        weights: Weights | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """The loss.

        Args:
            batch: of the kind that the objective gives.
            edge_weights: how much of which operation runs on each edge.
            weights: used in place of the network's parameters and buffers; None: the network's own.
            create_graph: whether the result will be differentiated twice.
        """
        ...


@dataclass
class VirtualStep:
    """The next step of the weights, as the look ahead takes it: SGD with momentum and weight decay.

    Args:
        lr: learning rate of the step.
        momentum: factor of the momentum buffers.
        weight_decay: L2, added to the gradient.
        buffers: SGD's momentum buffers, one for each weight; None where SGD has made no step yet.
        clip_norm: the gradient is scaled down to this norm; None: it is not scaled (DARTS on images).
        clip_direction: whether the direction of the Hessian product is scaled down, too, as in DARTS's
            recurrent code; the result is then not the gradient of anything.
        still: weights that do not move in the look ahead. DARTS's recurrent code forgets the embedding, which
            is tied to the decoder.
    """

    lr: float
    momentum: float
    weight_decay: float
    buffers: list[Tensor | None]
    clip_norm: float | None = None
    clip_direction: bool = False
    still: frozenset[str] = frozenset()

    def ahead(self, weights: Weights, gradients: tuple[Tensor, ...]) -> tuple[Weights, Tensor | float]:
        """The weights one step later: w - lr (momentum buffer + gradient + weight_decay w).

        Returns:
            The weights, and what their gradients were scaled by.
        """
        scale = clip_factor(gradients, self.clip_norm)
        # Lists of tensors: a GPU computes a hundred of them in one kernel.
        names, before = list(weights), list(weights.values())
        # The order of torch: clip the gradient, add the decay, then let momentum gather both.
        directions = laid_out_as(before, gradients)
        if self.clip_norm is not None:
            directions = _scaled(directions, scale)
        directions = list(torch._foreach_add(directions, before, alpha=self.weight_decay))
        gathered = [number for number, buffer in enumerate(self.buffers) if buffer is not None]
        if gathered and self.momentum:
            fresh = [directions[number] for number in gathered]
            buffers = [buffer for buffer in self.buffers if buffer is not None]
            # Not in place: `exact` differentiates it.
            sums = torch._foreach_add(fresh, buffers, alpha=self.momentum)
            for number, direction in zip(gathered, sums, strict=True):
                directions[number] = direction
        moved = dict(zip(names, torch._foreach_add(before, directions, alpha=-self.lr), strict=True))
        for name in self.still:
            moved[name] = weights[name]
        return moved, scale


def _scaled(directions: list[Tensor], scale: Tensor | float) -> list[Tensor]:
    """The directions times their common factor."""
    # torch 2.14 fails at the gradient of a list's factor; `exact` needs it, since the factor clips.
    if isinstance(scale, Tensor) and scale.requires_grad:
        return [direction * scale for direction in directions]
    return list(torch._foreach_mul(directions, scale))


class BilevelProblem(NamedTuple):
    """What second-order gradients of the architecture depend on.

    Args:
        network: the network whose weights the inner level moves.
        loss: the loss of the network on a batch.
        edge_weights: builds the edge weights from the alphas anew, with the same draws each time.
        penalised: the validation loss with its penalties, from the loss and the edge weights.
        alphas: the architecture's parameters.
        train: batch of the inner level.
        valid: batch of the outer level.
        step: the weights' step of the inner level.
    """

    network: nn.Module
    loss: LossFn
    edge_weights: Callable[[], NetworkEdgeWeights]
    penalised: Callable[[Tensor, NetworkEdgeWeights], Tensor]
    alphas: list[Tensor]
    train: Any
    valid: Any
    step: VirtualStep

    def look_ahead(self, create_graph: bool) -> tuple[Weights, Tensor | float]:
        """The weights one training step later, and what its gradient was scaled by.

        Args:
            create_graph: the weights ahead are functions of the alphas.
        """
        weights = dict(self.network.named_parameters())
        loss = self.loss(self.train, self.edge_weights(), create_graph=create_graph)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
        # Detached: the step starts at the weights as they are, whatever led to them.
        return self.step.ahead({name: w.detach() for name, w in weights.items()}, gradients)

    def validation_loss(self, weights: Weights, create_graph: bool) -> Tensor:
        """The penalised validation loss at given weights."""
        # Built anew, since the graph of the first ones may be used up.
        edge_weights = self.edge_weights()
        # Copies, since a look ahead must leave no trace in the running statistics of BatchNorm.
        buffers = copies(dict(self.network.named_buffers()))
        loss = self.loss(self.valid, edge_weights, weights | buffers, create_graph=create_graph)
        return self.penalised(loss, edge_weights)


def copies(tensors: Weights) -> Weights:
    """Copies of all of them."""
    # A GPU copies tensors of one type in one kernel; counters of batches are integers.
    names: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.dtype, []).append(name)
    copied: Weights = {}
    for same in names.values():
        copied |= zip(same, torch._foreach_clone([tensors[name] for name in same]), strict=True)
    return copied


def laid_out_as(models: Iterable[Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, each with the strides of its model.

    Where a single pair differs in strides, torch computes a list of tensors one by one. Gradients that
    `torch.autograd.grad` returns may have other strides than their weights.
    """
    found = []
    for model, tensor in zip(models, tensors, strict=True):
        # An axis with one place has any stride.
        sides = zip(model.shape, model.stride(), tensor.stride(), strict=True)
        same = tensor.device.type == "cpu" or all(side == 1 or a == b for side, a, b in sides)
        found.append(tensor if same else torch.empty_like(model).copy_(tensor))
    return found


def clip_factor(gradients: tuple[Tensor, ...], norm: float | None) -> Tensor | float:
    """The factor, at most 1, by which gradients are scaled so that their joint norm is at most `norm`."""
    if norm is None:
        return 1.0
    # The constant is that of torch's clip_grad_norm_.
    return (norm / (joint_norm(gradients) + 1e-6)).clamp_max(1)


def joint_norm(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Turn gradients of the weights off: graphs that are built inside keep only what alphas need."""
    weights = list(network.parameters())
    for w in weights:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)


def first_order(
    network: nn.Module, loss: Callable[[], Tensor], alphas: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(loss, gradients of alphas) at the network's own weights. The weights' gradients are not computed."""
    # The backward pass then stops at the operations' outputs: no weight gradient is computed or kept.
    with frozen(network):
        value = loss()
    return value.detach(), _gradients(value, alphas)


def all_gradients(
    network: nn.Module, loss: Callable[[], Tensor], alphas: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], Weights]:
    """As `first_order`, and by name the gradients of the weights, which that leaves out."""
    value, weights = loss(), dict(network.named_parameters())
    gradients = _gradients(value, [*alphas, *weights.values()])
    of_weights = dict(zip(weights, gradients[len(alphas) :], strict=True))
    return value.detach(), gradients[: len(alphas)], of_weights


def _gradients(value: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)


def second_order(problem: BilevelProblem) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(penalised loss, gradients of alphas) of the validation loss one step ahead, by central differences.

    Costs four forward and backward passes; the second-order term is -lr [g(w + e v) - g(w - e v)] / (2 e),
    with e = 0.01 / |v|. Where the training gradient is clipped, its factor goes with lr, as if it did not
    depend on the architecture (`exact` knows that it does).
    """
    step, alphas = problem.step, problem.alphas
    # 1. The weights after one training step.
    ahead, scale = problem.look_ahead(create_graph=False)
    # New leaves, so that the validation loss has gradients at exactly these weights.
    ahead = {name: w.detach().requires_grad_() for name, w in ahead.items()}
    value = problem.validation_loss(ahead, create_graph=False)
    # 2. One backward pass gives the first-order term, and v, the direction of the Hessian product.
    gradients = _gradients(value, [*alphas, *ahead.values()])
    first, v = gradients[: len(alphas)], tuple(laid_out_as(ahead.values(), gradients[len(alphas) :]))
    # Only to reproduce the published code: see `VirtualStep`.
    if step.clip_direction:
        factor = clip_factor(v, step.clip_norm)
        v = tuple(torch._foreach_mul(v, factor))
    # 3. The second-order term: how the training gradient of alphas changes along v.
    e = EPSILON / joint_norm(v)
    plus, minus = _training_gradients(problem, v, e), _training_gradients(problem, v, -e)
    # 4. Together: the look ahead's step was -lr times the training gradient.
    total = []
    for g, p, m in zip(first, plus, minus, strict=True):
        total.append(g - step.lr * (scale * (p - m) / (2 * e)))
    return value.detach(), tuple(total)


def _training_gradients(problem: BilevelProblem, v: tuple[Tensor, ...], e: Tensor) -> tuple[Tensor, ...]:
    """Gradients of alphas of the training loss at w + e v."""
    weights = {name: w.detach() for name, w in problem.network.named_parameters()}
    steps = torch._foreach_mul(v, e)
    torch._foreach_add_(steps, list(weights.values()))
    moved = dict(zip(weights, steps, strict=True))
    return _gradients(problem.loss(problem.train, problem.edge_weights(), moved), problem.alphas)


def exact(problem: BilevelProblem) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`second_order` without finite differences: the training step itself is differentiated.

    On the DARTS space it takes five times the time and four times the memory of first order.
    """
    ahead, _ = problem.look_ahead(create_graph=True)
    value = problem.validation_loss(ahead, create_graph=True)
    return value.detach(), _gradients(value, problem.alphas)


def dominant_eigenvalue(
    loss: Callable[[], Tensor], alphas: list[Tensor], generator: torch.Generator, steps: int = 30
) -> float:
    """The largest eigenvalue of the Hessian of `loss` in alphas, by Lanczos's method (1950).

    RobustDARTS (2020, arXiv:1909.09656) watches it, the largest and not the largest in size: flat minima keep
    their accuracy when the cell is read off, sharp ones lose it. Power iteration would end at a negative
    eigenvalue that is larger in size.

    Args:
        loss: builds its graph with `create_graph=True`.
        alphas: the parameters.
        generator: draws the first vector, on CPU.
        steps: the most Hessian-vector products; the iteration ends earlier once the value is known to 0.1%.
    """
    gradients = torch.autograd.grad(
        loss(), alphas, create_graph=True, materialize_grads=True, allow_unused=True
    )
    gradient = torch.cat([part.flatten() for part in gradients])

    def product(v: Tensor) -> Tensor:
        """Hessian times v."""
        parts = torch.autograd.grad(
            gradient @ v, alphas, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return torch.cat([part.flatten() for part in parts])

    # Any direction has a part along the dominant eigenvector, almost surely.
    start = torch.cat([torch.randn(a.shape, generator=generator, dtype=a.dtype).flatten() for a in alphas])
    start = start.to(gradient.device)
    basis = [start / start.norm()]  # orthonormal; in it the Hessian is the tridiagonal matrix of both lists
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, len(start))):
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        known = torch.stack(basis)
        # Twice: once leaves rounding errors along the vectors before, which would come back as eigenvalues.
        for _ in range(2):
            w = w - known.T @ (known @ w)
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, value in enumerate(beside):
            tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = value
        values, vectors = torch.linalg.eigh(tridiagonal)
        rest = float(w.norm())
        # The bound of how far this value is from an eigenvalue.
        error = rest * abs(float(vectors[-1, -1]))
        rounding = torch.finfo(gradient.dtype).eps * float(values.abs().max())
        if error <= 1e-3 * abs(float(values[-1])) + 10 * rounding:
            break
        beside.append(rest)
        basis.append(w / rest)
    return float(values[-1])


def weight_gradients(network: nn.Module, value: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Put the gradients of `value` into the network's weights."""
    # None instead of 0: by None the loop below knows the operations that were not drawn.
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    missing = []
    for w in network.parameters():
        # An operation that was not drawn still decays and keeps its momentum. Otherwise that would depend on
        # which operations share a stacked tensor with one that was drawn.
        if w.grad is None:
            w.grad = torch.empty_like(w)
            missing.append(w.grad)
    if missing:
        torch._foreach_zero_(missing)


def clip_and_step(network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
    """Clip the gradients of the network's weights, and take a step along them."""
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()


def momentum_buffers(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[Tensor | None]:
    """SGD's buffers in the order of the network's parameters; None where it made no step yet."""
    buffers: list[Tensor | None] = []
    for w in network.parameters():
        buffers.append(optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None)
    return buffers
