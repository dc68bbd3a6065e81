"""The steps whose kernels are counted: of this project, and the same ones with one module per operation.

On the meta device, where tensors have sizes and no numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_cells import Plain201, PlainDarts
from benchmarks.supernet_step import plain_step
from engine.blocks.elastic import add_gradients_in_place
from engine.optim import SGD, Cosine, build_sgd, clip_gradients
from ofa.space.space import load_space
from ofa.supernet import Supernet
from ofa.training.sandwich import Sandwich, sandwich_step
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.methods.darts import Darts
from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.gdas import Gdas
from oneshot.networks.final import FinalNetwork
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.searcher import Searcher
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.spaces.read_genotype import find_genotype

META = torch.device("meta")
Step = Callable[[], object]


class Images(NamedTuple):
    """What a search asks of its images: there are none on the meta device."""

    size: int = 32
    device: torch.device = META
    classes: tuple[int, ...] = tuple(range(10))

    def steps(self, batch_size: int, subset: str = "train") -> int:
        """One."""
        return 1

    def size_of(self, subset: str) -> int:
        """One."""
        return 1


def batch(count: int, side: int, layout: torch.memory_format = torch.channels_last) -> tuple[Tensor, Tensor]:
    """Images and labels on the meta device."""
    x = torch.empty(count, 3, side, side, device=META).contiguous(memory_format=layout)
    return x, torch.zeros(count, dtype=torch.long, device=META)


def search(method: Method, space: CellSpace, images: int, cells: int = 0) -> Step:
    """A step of a search as `oneshot.search` takes it."""
    network = search_network(space, method, 16, cells or (5 if space.name == "nasbench201" else 8), 10, 3)
    data: Any = Images()
    objective = ImageObjective(network, data, images, method.level != "bilevel", method.level == "released")
    searcher = Searcher(method, space, objective, 0, method.warmup_epochs + 1)
    # Behind the warm-up, so that the architecture moves.
    searcher.state.progress = searcher.state.progress._replace(epoch=method.warmup_epochs)
    train, valid = batch(images, 32), batch(images, 32)
    return lambda: searcher.step(0, train, valid)


def sandwich(name: str, images: int) -> Step:
    """A step of `ofa.train`, with the settings of BigNAS and without draws."""
    space, config, sgd = load_space(name), Sandwich(dropout=0, drop_connect=0), SGD()
    supernet = Supernet(space, 1000).to(META, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_sgd(sgd, supernet)
    add_gradients_in_place(supernet)
    x, y = batch(images, max(space.resolution))

    def step() -> None:
        optimizer.zero_grad()
        sandwich_step(supernet, x, y, 0, config)
        clip_gradients(sgd, supernet)
        optimizer.step()

    return step


def retraining(images: int) -> Step:
    """A step of `oneshot.retrain` on DARTS_V2 with the published recipe."""
    network = FinalNetwork(find_genotype("DARTS_V2"), auxiliary=True)
    network.to(META, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = SGD(lr=0.025, nesterov=False, decay_all=True, clip_value=None, clip_norm=5, schedule=Cosine())
    return trained(network, build_sgd(sgd, network), batch(images, 32), 0.2)


def trained(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: tuple[Tensor, Tensor], drop: float
) -> Step:
    """A step of a network with an auxiliary head."""
    x, y = images

    def step() -> None:
        optimizer.zero_grad()
        losses = torch.stack([F.cross_entropy(logits, y) for logits in network(x, drop)])
        (losses[0] + 0.4 * losses[1:].sum()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()

    return step


# The same steps with one module per operation.


def plain_search(method: Method, space: CellSpace, images: int, cells: int = 0) -> Step:
    """A step as reference codes take it: the alpha step computes gradients of weights and drops them."""
    cells = cells or (5 if space.name == "nasbench201" else 8)
    ours: Any = search_network(space, method, 16, cells, 10, 3)
    if space.name == "nasbench201":
        network: nn.Module = Plain201(ours).to(META)
    else:
        network = PlainDarts(ours, method.partial).to(META)
    alphas, edges = [], []
    for _ in space.cells:
        alphas.append(torch.empty(len(space.edges), len(space.operations), device=META, requires_grad=True))
        if method.edge_weights:
            edges.append(torch.empty(len(space.edges), device=META, requires_grad=True))
    weights = list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.025, 0.9, weight_decay=3e-4)
    adam = torch.optim.Adam([*alphas, *edges], 3e-4, (0.5, 0.999), weight_decay=1e-3)
    train, valid = batch(images, 32, torch.contiguous_format), batch(images, 32, torch.contiguous_format)

    def loss(of: tuple[Tensor, Tensor]) -> Tensor:
        found = {}
        for number, kind in enumerate(space.cells):
            edge_E = None
            if edges:
                edge_E = torch.cat([edges[number][into].softmax(0) for into in space.entering])
            found[kind] = EdgeWeights(*plain_weights(method, alphas[number]), edge_E=edge_E)
        return F.cross_entropy(network(of[0], found), of[1])

    def step() -> None:
        sgd.zero_grad()
        adam.zero_grad()
        if method.order == "second":
            plain_second_order(loss, train, valid, weights, [*alphas, *edges])
        else:
            loss(valid).backward()
        adam.step()
        sgd.zero_grad()
        loss(train).backward()
        nn.utils.clip_grad_norm_(weights, 5)
        sgd.step()

    return step


def plain_weights(method: Method, alpha_EO: Tensor) -> tuple[Tensor, Any]:
    """Edge weights, and the operations that run where the method samples."""
    if not method.samples_operations:
        return alpha_EO.softmax(-1), None
    soft = (alpha_EO.log_softmax(-1) + torch.empty_like(alpha_EO).exponential_().log().neg()).softmax(-1)
    hot = torch.zeros_like(soft).scatter_(-1, soft.max(-1, keepdim=True)[1], 1.0)
    drawn = tuple((position % 4 + 1,) for position in range(len(alpha_EO)))
    return hot - soft.detach() + soft, drawn


def plain_second_order(
    loss: Callable[[Any], Tensor], train: Any, valid: Any, weights: list[nn.Parameter], alphas: list[Tensor]
) -> None:
    """DARTS's second order weight by weight, as its code has it; gradients are left in `grad`."""
    momentum = [torch.empty_like(w) for w in weights]
    before = [w.detach().clone() for w in weights]
    gradients = torch.autograd.grad(loss(train), weights)
    with torch.no_grad():
        for w, gradient, buffer in zip(weights, gradients, momentum, strict=True):
            w.sub_(gradient + 3e-4 * w + 0.9 * buffer, alpha=0.025)
    both = torch.autograd.grad(loss(valid), [*alphas, *weights])
    direction = both[len(alphas) :]
    eps = 0.01 / torch.cat([v.flatten() for v in direction]).norm()
    sides = []
    for side in (eps, -eps):
        with torch.no_grad():
            for w, start, v in zip(weights, before, direction, strict=True):
                w.copy_(start + side * v)
        sides.append(torch.autograd.grad(loss(train), alphas))
    with torch.no_grad():
        for w, start in zip(weights, before, strict=True):
            w.copy_(start)
    for alpha, gradient, up, down in zip(alphas, both[: len(alphas)], *sides, strict=True):
        alpha.grad = gradient - 0.025 * (up - down) / (2 * eps)


def plain_sandwich(name: str, images: int) -> Step:
    """A sandwich of plain networks that are given slices of the supernet."""
    space = load_space(name)
    supernet = Supernet(space, 1000).to(META)
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1, 0.9, weight_decay=1e-5, nesterov=True)
    x, y = batch(images, max(space.resolution), torch.contiguous_format)

    def step() -> None:
        optimizer.zero_grad()
        plain_step(supernet, x, y, 0)
        nn.utils.clip_grad_value_(supernet.parameters(), 1.0)
        optimizer.step()

    return step


def plain_retraining(images: int) -> Step:
    """The final network has one module per operation already; here it has torch's usual optimiser."""
    network = FinalNetwork(find_genotype("DARTS_V2"), auxiliary=True).to(META)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4)
    return trained(network, optimizer, batch(images, 32, torch.contiguous_format), 0.2)


class Pair(NamedTuple):
    """A step of ours and the plain one, each as a function of the number of images."""

    ours: Callable[[int], Step]
    plain: Callable[[int], Step]
    images: int


def searched(method: Method, space: str, images: int) -> Pair:
    """The two steps of a search."""
    found = find_space(space)
    return Pair(
        lambda count: search(method, found, count), lambda count: plain_search(method, found, count), images
    )


def supernets(space: str, images: int) -> Pair:
    """The two steps of a supernet."""
    return Pair(lambda count: sandwich(space, count), lambda count: plain_sandwich(space, count), images)


def pairs() -> dict[str, Pair]:
    """All steps, by name."""
    published = PUBLISHED["nasbench201"]
    return {
        "darts": searched(Darts(), "darts", 64),
        "darts second": searched(Darts(order="second"), "darts", 64),
        "pc_darts": searched(PcDarts(), "darts", 256),
        "nasbench201": searched(Darts.model_validate(published), "nasbench201", 64),
        "gdas": searched(Gdas.model_validate(published), "nasbench201", 64),
        "small32": supernets("small32", 64),
        "attentive_nas": supernets("attentive_nas", 64),
        "darts_v2": Pair(retraining, plain_retraining, 96),
    }
