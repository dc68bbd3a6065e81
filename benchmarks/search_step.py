"""Time and memory of one search step, ours against a network with one module per edge and operation, as
reference codes have it.

The plain network is written for this comparison in ordinary torch layers in the default layout. Its weights
are copied from ours; logits, alpha gradients and weight gradients are compared in float64 first. Both then
run by turns in one process, in float32. As in reference codes the plain alpha step computes the gradients of
the network's weights too and throws them away (loss.backward()); --frozen spares it that. CPU time is
disturbed less by other processes than the clock, best with one thread. Peak memory is that of a fresh process
for each that takes two steps.

steps: first       alphas by a validation batch, then weights by a training batch (first order)
       second      the same with DARTS's second-order alphas
       pc          first order, PC-DARTS's partial channels (a quarter)
       nasbench201 first order on NAS-Bench-201's network, N = 5
       gdas        first order on it, one operation an edge

    python benchmarks/search_step.py --steps first nasbench201 --threads 1 --rounds 4

--layers shows instead what a step spends on which kind of layer, forward and backward, by torch's profiler,
and the ratio that would be left if both networks had nothing but the layers that they share.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.layers import layer_times, print_layers
from benchmarks.plain_cells import Plain201, PlainDarts, pairs
from engine.compute.memory import keep_freed_memory
from engine.run import environment
from oneshot import bilevel
from oneshot.axes.edge_weights import EdgeWeights, NetworkEdgeWeights
from oneshot.networks.parallel_edges import EdgeSettings
from oneshot.networks.search import DartsNetwork, NasBench201Network
from oneshot.spaces.cells import find_space

STEPS = ("first", "second", "pc", "nasbench201", "gdas")
Batch = tuple[Tensor, Tensor]


class Job(NamedTuple):
    """What a step works on."""

    name: str
    ours: bool
    net: nn.Module
    alphas: list[Tensor]
    weights: torch.optim.Optimizer
    architecture: torch.optim.Optimizer
    train: Batch
    valid: Batch
    frozen: bool


def networks(name: str, cells: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and the plain one, with the same weights."""
    torch.manual_seed(0)
    if name in ("nasbench201", "gdas"):
        ours: nn.Module = NasBench201Network(find_space("nasbench201"), channels, cells)
        plain: nn.Module = Plain201(ours)
    else:
        partial = 4 if name == "pc" else 1
        ours = DartsNetwork(find_space("darts"), channels, cells, settings=EdgeSettings(partial=partial))
        plain = PlainDarts(ours, partial)
    copied = set()
    with torch.no_grad():
        for tensor, blocks, block, other in pairs(ours, plain):
            other.copy_(tensor.chunk(blocks)[block])
            copied.add(other)
    assert copied == set(plain.parameters())
    return ours, plain


def jobs(name: str, args: argparse.Namespace, dtype: torch.dtype = torch.float) -> dict[str, Job]:
    """By turns measured: the network, alphas, optimizers and batches of each."""
    found = {}
    for which, net in zip(
        ("ours", "plain"),
        networks(name, args.blocks if name in ("nasbench201", "gdas") else 8, 16),
        strict=True,
    ):
        torch.manual_seed(1)
        space = find_space("nasbench201" if name in ("nasbench201", "gdas") else "darts")
        alphas = [torch.randn(len(space.edges), len(space.operations)) for _ in space.cells]
        alphas += [torch.randn(len(space.edges)) for _ in space.cells] if name == "pc" else []
        alphas = [(1e-3 * alpha).to(dtype).requires_grad_() for alpha in alphas]
        layout = torch.channels_last if which == "ours" else torch.contiguous_format
        images = torch.randn(2, args.batch, 3, 32, 32).to(dtype)
        train, valid = (
            (x.contiguous(memory_format=layout), torch.randint(10, (args.batch,))) for x in images
        )
        net = net.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        sgd = torch.optim.SGD(net.parameters(), 0.025, 0.9, weight_decay=3e-4)
        adam = torch.optim.Adam(alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3)
        found[which] = Job(
            name, which == "ours", net, alphas, sgd, adam, train, valid, which == "ours" or args.frozen
        )
    return found


def edge_weights(name: str, alphas: list[Tensor], step: int) -> dict[str, EdgeWeights]:
    """What the network is told; GDAS's draw is the same for both networks."""
    if name == "gdas":
        draws = torch.empty(alphas[0].shape, dtype=alphas[0].dtype)
        # Drawn on the CPU, so that a step draws the same on every device.
        noise = -draws.exponential_(generator=torch.Generator().manual_seed(step)).log().to(alphas[0].device)
        soft = ((alphas[0].log_softmax(-1) + noise) / 10).softmax(-1)
        chosen = soft.argmax(-1)
        hard = F.one_hot(chosen, soft.shape[1]) - soft.detach() + soft
        unsampled = hard.sum(1) - hard.gather(1, chosen[:, None])[:, 0]
        return {"cell": EdgeWeights(hard, tuple((int(o),) for o in chosen), offset_E=unsampled)}
    cells = ("cell",) if name == "nasbench201" else ("normal", "reduce")
    entering = find_space("darts").entering
    edges = [torch.cat([beta[into].softmax(0) for into in entering]) for beta in alphas[2:]] or [None, None]
    return {
        kind: EdgeWeights(alpha.softmax(-1), edge_E=edge)
        for kind, alpha, edge in zip(cells, alphas, edges, strict=False)
    }


def loss_of(job: Job, batch: Batch, step: int, alphas: list[Tensor] | None = None) -> Tensor:
    return F.cross_entropy(
        job.net(batch[0], edge_weights(job.name, job.alphas if alphas is None else alphas, step)), batch[1]
    )


def fixed(job: Job) -> list[Tensor]:
    """The alphas for a step of the weights: reference codes compute their gradients too."""
    return [alpha.detach() for alpha in job.alphas] if job.frozen else job.alphas


def alpha_gradient(job: Job, batch: Batch, step: int) -> list[Tensor]:
    if job.frozen:
        return list(bilevel.first_order(job.net, lambda: loss_of(job, batch, step), job.alphas)[1])
    loss_of(job, batch, step).backward()
    return [alpha.grad for alpha in job.alphas]  # type: ignore[misc]


class FunctionalLoss:
    """The loss as a function of the weights too."""

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(
        self,
        batch: Batch,
        edge_weights: NetworkEdgeWeights,
        weights: dict[str, Tensor] | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        logits = functional_call(self.net, weights or {}, (batch[0], edge_weights, create_graph))
        return F.cross_entropy(logits, batch[1])


def second_order(job: Job, step: int) -> list[Tensor]:
    """DARTS's: by the weights one step on, less a finite difference."""
    if not job.ours:
        return plain_second_order(job, step)
    buffers = [job.weights.state[w].get("momentum_buffer") for w in job.net.parameters()]
    problem = bilevel.BilevelProblem(
        network=job.net,
        loss=FunctionalLoss(job.net),
        edge_weights=functools.partial(edge_weights, job.name, job.alphas, step),
        penalised=lambda value, _: value,
        alphas=job.alphas,
        train=job.train,
        valid=job.valid,
        step=bilevel.VirtualStep(0.025, 0.9, 3e-4, buffers),
    )
    return list(bilevel.second_order(problem)[1])


def plain_second_order(job: Job, step: int) -> list[Tensor]:
    """The same in place, as a separate network's weights would be overwritten."""
    weights = list(job.net.parameters())
    before = [w.detach().clone() for w in weights]
    gradient = torch.autograd.grad(
        loss_of(job, job.train, step, [alpha.detach() for alpha in job.alphas]), weights
    )
    with torch.no_grad():
        for w, g in zip(weights, gradient, strict=True):
            momentum = job.weights.state[w].get("momentum_buffer")
            w -= 0.025 * (g + 3e-4 * w + (0 if momentum is None else 0.9 * momentum))
    both = torch.autograd.grad(loss_of(job, job.valid, step), [*job.alphas, *weights])
    direction = both[len(job.alphas) :]
    eps = 0.01 / torch.cat([v.flatten() for v in direction]).norm()
    sides = []
    for side in (eps, -eps):
        with torch.no_grad():
            for w, start, v in zip(weights, before, direction, strict=True):
                w.copy_(start + side * v)
        sides.append(torch.autograd.grad(loss_of(job, job.train, step), job.alphas))
    with torch.no_grad():
        for w, start in zip(weights, before, strict=True):
            w.copy_(start)
    return [g - 0.025 * (up - down) / (2 * eps) for g, up, down in zip(both, *sides, strict=False)]


def one_step(job: Job, step: int) -> None:
    gradient = second_order(job, step) if job.name == "second" else alpha_gradient(job, job.valid, step)
    for alpha, of_alpha in zip(job.alphas, gradient, strict=True):
        alpha.grad = of_alpha
    job.architecture.step()
    job.weights.zero_grad()
    loss_of(job, job.train, step, fixed(job)).backward()
    nn.utils.clip_grad_norm_(job.net.parameters(), 5.0)
    job.weights.step()
    job.architecture.zero_grad()


def timed(job: Job, step: int) -> tuple[float, float]:
    """Seconds of CPU, all threads together, and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    one_step(job, step)
    return time.process_time() - cpu, time.perf_counter() - wall


def check(name: str, args: argparse.Namespace) -> None:
    """Logits, alpha gradients and weight gradients in float64."""
    args = argparse.Namespace(**{**vars(args), "batch": 4, "blocks": 2})
    ours, plain = jobs(name, args, torch.double).values()
    logits = [job.net(job.valid[0], edge_weights(name, job.alphas, 0)) for job in (ours, plain)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-12)
    gradient = second_order if name == "second" else lambda job, step: alpha_gradient(job, job.valid, step)
    torch.testing.assert_close(
        gradient(ours, 0), gradient(plain, 0), rtol=1e-7 if name == "second" else 1e-9, atol=1e-12
    )
    for job in (ours, plain):
        job.net.zero_grad()
        loss_of(job, job.train, 0, fixed(job)).backward()
    for tensor, blocks, block, other in pairs(ours.net, plain.net):
        if other.grad is not None:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad.chunk(blocks)[block], other.grad, rtol=1e-8, atol=1e-11)


def peak(name: str, which: str, args: argparse.Namespace) -> float:
    """GB of a fresh process that takes two steps."""
    words = [
        sys.executable,
        __file__,
        "--only",
        which,
        "--steps",
        name,
        "--batch",
        str(args.batch),
        "--threads",
        str(args.threads),
    ]
    words += ["--frozen"] * args.frozen
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


LAYERS = {
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::_convolution"),
    "BatchNorm": ("aten::native_batch_norm", "aten::batch_norm", "aten::_batch_norm"),
    "pools": ("aten::avg_pool2d", "aten::max_pool2d", "aten::div"),
    "ReLU": ("aten::relu", "aten::clamp_min", "aten::threshold"),
    "weighted sums": ("aten::add", "aten::mul", "aten::mm", "aten::cat", "aten::stack", "aten::sum"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::clone"),
}


def compare_layers(name: str, args: argparse.Namespace) -> None:
    """Print what both steps spend on which kind of layer."""
    running = jobs(name, args)
    ours, plain = (
        layer_times(functools.partial(one_step, running[which]), LAYERS, args.rounds)
        for which in ("ours", "plain")
    )
    print_layers(name, ours, plain, ("convolutions", "BatchNorm"))


def print_comparison(name: str, memory: dict[str, float], args: argparse.Namespace) -> None:
    if not args.unchecked:
        check(name, args)
    running = jobs(name, args)
    taken: dict[str, list[tuple[float, float]]] = {which: [] for which in running}
    for step in range(args.rounds + 1):
        for which, job in running.items():
            taken[which].append(timed(job, step))
    for which in running:
        del taken[which][0]
    line = f"{name:12}"
    for place in (0, 1):
        least = {which: min(t[place] for t in taken[which]) for which in running}
        ratios = sorted(b[place] / a[place] for a, b in zip(taken["ours"], taken["plain"], strict=True))
        line += (
            f"{least['ours']:8.3f} {least['plain']:8.3f} {ratios[len(ratios) // 2]:5.2f} ({ratios[0]:.2f} "
            f"to {ratios[-1]:.2f})"
        )
    print(
        f"{line} {memory['ours']:7.2f} {memory['plain']:6.2f} {memory['plain'] / memory['ours']:5.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", action="store_true", help="show what is spent on which kind of layer")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peaks in fresh processes")
    parser.add_argument("--unchecked", action="store_true", help="do not compare the networks first")
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="the plain network too computes no gradients that it throws away",
    )
    parser.add_argument(
        "--only", choices=["ours", "plain"], help="take two steps and print the peak memory in GB"
    )
    args = parser.parse_args()
    args.blocks = 5
    torch.set_num_threads(args.threads)
    if args.only != "plain":
        keep_freed_memory()
    if args.only:
        job = jobs(args.steps[0], args)[args.only]
        for step in range(2):
            one_step(job, step)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        return
    if args.layers:
        for name in args.steps:
            compare_layers(name, args)
        return
    print("             CPU seconds a step                  wall seconds a step                 peak GB")
    print(
        "step            ours    plain ratio (range)        ours    plain ratio (range)        ours  plain "
        "ratio"
    )
    # First of all: what this process has used by then counts as its children's peak.
    memory: dict[str, dict[str, float]] = {}
    for name in args.steps:
        memory[name] = dict.fromkeys(("ours", "plain"), float("nan"))
        if not args.no_memory:
            memory[name] = {which: peak(name, which, args) for which in memory[name]}
    for name in args.steps:
        print_comparison(name, memory[name], args)
    print(
        environment()["versions"],
        f"{args.threads} threads, batch {args.batch}; ratios: median of {args.rounds} rounds",
    )


if __name__ == "__main__":
    main()
