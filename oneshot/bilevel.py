"""The architecture's gradient, first and second order, and the exact one.

DARTS (2019, arXiv:1806.09055): alphas follow the validation loss at the weights that one training step would
lead to. A loss here is a pure function of (batch, mixtures, weights), so that weights other than the
network's own are an argument; whatever is random in it (dropout masks, sampled operations) belongs to the
batch or to the mixtures, and is therefore the same in every forward of one step.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import Mixture

Mixtures = Mapping[str, Mixture]
EPSILON = 0.01


class Loss(Protocol):
    """Mean loss of the network on one batch."""

    def __call__(
        self, batch: Any, mixtures: Mixtures, weights: dict[str, Tensor] | None = None, twice: bool = False
    ) -> Tensor:
        """weights: in place of the network's parameters (and buffers, if given). twice: the result is
        differentiated twice."""
        ...


@dataclass
class Inner:
    """The weights' own step, as the look ahead takes it: SGD with momentum and weight decay.

    Args:
        lr, momentum, weight_decay: of the step.
        buffers: SGD's momentum buffers, one for each weight; None: no step was made yet.
        clip_norm: the gradient is scaled down to this norm; None: not (DARTS on images).
        clip_direction: scale down the direction of the Hessian product, too, as DARTS's recurrent code does;
            it is then not the gradient of anything.
        still: weights that do not move in the look ahead; that code forgets the embedding, which is tied to
            the decoder.
    """

    lr: float
    momentum: float
    weight_decay: float
    buffers: list[Tensor | None]
    clip_norm: float | None = None
    clip_direction: bool = False
    still: frozenset[str] = frozenset()

    def ahead(
        self, weights: dict[str, Tensor], gradients: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        """(the weights one step later, what their gradients were scaled by): w - lr (momentum buffer +
        gradient + weight_decay w)."""
        scale = clip_factor(gradients, self.clip_norm)
        moved = {}
        for (name, w), gradient, buffer in zip(weights.items(), gradients, self.buffers, strict=True):
            direction = scale * gradient + self.weight_decay * w
            ahead = w - self.lr * (direction if buffer is None else self.momentum * buffer + direction)
            moved[name] = w if name in self.still else ahead
        return moved, scale


def clip_factor(gradients: tuple[Tensor, ...], norm: float | None) -> Tensor | float:
    """What brings gradients down to a common norm of at most `norm`."""
    return 1.0 if norm is None else (norm / (length(gradients) + 1e-6)).clamp_max(1)


def length(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Weights that nothing wants a gradient for: graphs built inside keep and compute only what alphas
    need."""
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
    with frozen(network):
        value = loss()
    return value.detach(), _gradients(value, alphas)


def _gradients(value: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)


def second_order(
    network: nn.Module,
    loss: Loss,
    mixtures: Callable[[], Mixtures],
    objective: Callable[[Tensor, Mixtures], Tensor],
    alphas: list[Tensor],
    train: Any,
    valid: Any,
    inner: Inner,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(objective, gradients of alphas) of the validation loss one step ahead, the Hessian by central
    differences.

    Costs four forward and backward passes; the second-order term is -lr [g(w + e v) - g(w - e v)] / (2 e),
    with e = 0.01 / |v|. Where the training gradient is clipped, its factor goes with lr, as if it did not
    depend on the architecture (`exact` knows that it does).

    Args:
        mixtures: builds the mixtures from alphas anew; the same draws each time.
        objective: the validation loss with its penalties.
        inner: the weights' step.
    """
    weights = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss(train, mixtures()), list(weights.values()))
    ahead, scale = inner.ahead({name: w.detach() for name, w in weights.items()}, gradients)
    state = {name: w.detach().requires_grad_() for name, w in ahead.items()}
    mixed = mixtures()
    buffers = {
        name: buffer.clone() for name, buffer in network.named_buffers()
    }  # a look ahead leaves no trace in the statistics
    value = objective(loss(valid, mixed, state | buffers), mixed)
    gradients = _gradients(value, [*alphas, *state.values()])
    of_alphas, v = gradients[: len(alphas)], gradients[len(alphas) :]
    if inner.clip_direction:
        factor = clip_factor(v, inner.clip_norm)
        v = tuple(factor * part for part in v)
    e = EPSILON / length(v)
    sides = []
    for sign in (1, -1):
        moved = {
            name: w.detach() + sign * e * direction
            for (name, w), direction in zip(weights.items(), v, strict=True)
        }
        sides.append(_gradients(loss(train, mixtures(), moved), alphas))
    curved = [scale * (plus - minus) / (2 * e) for plus, minus in zip(*sides, strict=True)]
    return value.detach(), tuple(g - inner.lr * c for g, c in zip(of_alphas, curved, strict=True))


def exact(
    network: nn.Module,
    loss: Loss,
    mixtures: Callable[[], Mixtures],
    objective: Callable[[Tensor, Mixtures], Tensor],
    alphas: list[Tensor],
    train: Any,
    valid: Any,
    inner: Inner,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same without finite differences: the training step itself is differentiated. On the DARTS space it
    takes five times the time and four times the memory of first order."""
    weights = dict(network.named_parameters())
    gradients = torch.autograd.grad(
        loss(train, mixtures(), twice=True), list(weights.values()), create_graph=True
    )
    ahead, _ = inner.ahead({name: w.detach() for name, w in weights.items()}, gradients)
    mixed = mixtures()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    value = objective(loss(valid, mixed, ahead | buffers, twice=True), mixed)
    return value.detach(), _gradients(value, alphas)


def dominant_eigenvalue(
    loss: Callable[[], Tensor], alphas: list[Tensor], generator: torch.Generator, steps: int = 20
) -> float:
    """The largest eigenvalue in size of the Hessian of `loss` in alphas, by power iteration on Hessian-vector
    products.

    RobustDARTS (2020, arXiv:1909.09656) watches it: flat minima keep their accuracy when the cell is read
    off, sharp ones lose it. `loss` must build its graph with `twice=True`.
    """
    gradients = torch.autograd.grad(
        loss(), alphas, create_graph=True, materialize_grads=True, allow_unused=True
    )
    v = [torch.randn(a.shape, generator=generator, dtype=a.dtype).to(a.device) for a in alphas]
    value = 0.0
    for _ in range(steps):
        norm = length(v)
        v = [part / norm for part in v]
        inner = torch.stack([(g * part).sum() for g, part in zip(gradients, v, strict=True)]).sum()
        product = torch.autograd.grad(
            inner, alphas, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        before, value = value, float(sum((p * part).sum() for p, part in zip(product, v, strict=True)))
        v = list(product)
        if abs(value - before) <= 1e-3 * abs(value):
            break
    return value


def weight_step(
    network: nn.Module, value: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float | None
) -> None:
    """One step of the network's weights down `value`."""
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    for w in (
        network.parameters()
    ):  # what was not drawn still decays and keeps its momentum, however operations are stacked
        if w.grad is None:
            w.grad = torch.zeros_like(w)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()


def momentum_buffers(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[Tensor | None]:
    """SGD's buffers in the order of the network's parameters; None where it made no step yet."""
    return [
        optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
        for w in network.parameters()
    ]


class ImageLoss:
    """Cross-entropy of a search network on a batch (images, classes)."""

    def __init__(self, network: nn.Module, bf16: bool = False):
        self.network, self.bf16 = network, bf16

    def __call__(
        self, batch: Any, mixtures: Mixtures, weights: dict[str, Tensor] | None = None, twice: bool = False
    ) -> Tensor:
        """See `Loss`."""
        x, y = batch
        arguments = (x, mixtures, twice)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = (
                self.network(*arguments)
                if weights is None
                else torch.func.functional_call(self.network, weights, arguments)
            )
        return F.cross_entropy(logits.float() if self.bf16 else logits, y)
