"""The same steps in ordinary torch layers, one module for each operation, as reference codes have them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import recurrent_step, search_step, supernet_step
from benchmarks.on_gpu.jobs import Size, random_images
from benchmarks.plain_cells import Plain201, PlainDarts
from engine.optim import SGD, build_sgd, clip_gradients
from ofa.space.space import load_space
from ofa.supernet import Supernet
from oneshot.networks.dropout import Dropout
from oneshot.networks.parallel_edges import EdgeSettings
from oneshot.networks.recurrent import SPACE, RecurrentNetwork, draw_masks
from oneshot.networks.search import DartsNetwork, NasBench201Network
from oneshot.spaces.cells import find_space


class PlainStep(NamedTuple):
    """A step that is timed only: how many images or words, and what takes its number."""

    items: int
    step: Callable[[int], object]


def plain_search(kind: str, size: Size, device: torch.device) -> PlainStep:
    """A search step. kind: one of `search_step.STEPS`."""
    torch.manual_seed(0)
    is_201 = kind in ("nasbench201", "gdas")
    partial = 4 if kind == "pc" else 1
    if is_201:
        net: nn.Module = Plain201(NasBench201Network(find_space("nasbench201"), size.channels, size.cells))
    else:
        settings = EdgeSettings(partial=partial)
        net = PlainDarts(
            DartsNetwork(find_space("darts"), size.channels, size.cells, settings=settings), partial
        )
    net.to(device)
    space = find_space("nasbench201" if is_201 else "darts")
    shapes = [(len(space.edges), len(space.operations))] * len(space.cells)
    alphas = [(1e-3 * torch.randn(shape)).to(device).requires_grad_() for shape in shapes]
    if partial > 1:
        alphas += [torch.zeros(len(space.edges), device=device, requires_grad=True) for _ in space.cells]
    x, y = random_images(2 * size.batch, size.side, 10, device, torch.float32)
    x = x.contiguous()  # reference codes keep the default layout
    train, valid = (x[: size.batch], y[: size.batch]), (x[size.batch :], y[size.batch :])
    sgd = torch.optim.SGD(net.parameters(), 0.025, 0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3)
    job = search_step.Job(kind, False, net, alphas, sgd, adam, train, valid, False)

    def step(number: int) -> None:
        search_step.one_step(job, number)

    return PlainStep(size.batch, step)


def plain_supernet(space_name: str, batch: int, side: int, device: torch.device) -> PlainStep:
    """A sandwich step with its update, in bfloat16, as ours."""
    torch.manual_seed(0)
    sgd = SGD()
    net = Supernet(load_space(space_name), 1000, 3).to(device)
    optimizer = build_sgd(sgd, net)
    x, y = random_images(batch, side, 1000, device, torch.float32)
    x = x.contiguous()

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            losses = supernet_step.plain_step(net, x, y, number)
        clip_gradients(sgd, net)
        optimizer.step()
        return losses

    return PlainStep(batch, step)


def plain_recurrent(batch: int, hidden: int, bptt: int, words: int, device: torch.device) -> PlainStep:
    """A first-order step of a recurrent search."""
    torch.manual_seed(0)
    net = RecurrentNetwork(words, hidden).to(device)
    x, y = torch.randint(words, (2, bptt, batch)).to(device)
    alpha = torch.zeros(len(SPACE.edges), len(SPACE.operations), device=device, requires_grad=True)
    h = torch.zeros(batch, hidden, device=device)
    masks = draw_masks(Dropout(), net, batch, torch.Generator(device=device))
    sgd, adam = torch.optim.SGD(net.parameters(), 20), torch.optim.Adam([alpha], 3e-3)

    def step(number: int) -> None:
        _, alpha.grad, gradients = recurrent_step.plain_step(net, alpha, x, y, h, masks)
        adam.step()
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        sgd.step()

    return PlainStep(batch * bptt, step)
