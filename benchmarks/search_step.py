"""Time and memory of one search step, ours against a network with one module per edge and operation, as reference codes have it.

The plain network is written for this comparison in ordinary torch layers in the default layout. Its weights are copied from ours;
logits, alpha gradients and weight gradients are compared in float64 first. Both then run by turns in one process, in float32.
As in reference codes the plain alpha step computes the gradients of the network's weights too and throws them away
(loss.backward()); --frozen spares it that. CPU time is disturbed less by other processes than the clock, best with one thread.
Peak memory is that of a fresh process for each that takes two steps.

steps: first       alphas by a validation batch, then weights by a training batch (first order)
       second      the same with DARTS's second-order alphas
       pc          first order, PC-DARTS's partial channels (a quarter)
       nasbench201 first order on NAS-Bench-201's network, N = 5
       gdas        first order on it, one operation an edge

    python benchmarks/search_step.py --steps first nasbench201 --threads 1 --rounds 4
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.device import keep_freed_memory
from engine.run import environment
from oneshot.fan import Separable
from oneshot.mixture import Mixture
from oneshot.network import DartsNetwork, Mixed, NasBench201Network, Residual
from oneshot.space import CellSpace, find_space

STEPS = ("first", "second", "pc", "nasbench201", "gdas")
EPS = 1e-5


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def conv(inp: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


class Reduce(nn.Module):
    """Factorized reduction."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.even, self.odd, self.norm = conv(inp, out // 2, 1, 2), conv(inp, out // 2, 1, 2), bn(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """The operation none."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


def separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    return [nn.ReLU(), conv(c, c, kernel, stride, dilation, c), conv(c, c), bn(c)]


def operation(name: str, c: int, stride: int, pool_norm: bool) -> nn.Module:
    kernel = int(name[-1]) if name[-1].isdigit() else 0
    match name.split("_")[0]:
        case "none":
            return Zero(stride)
        case "max":
            return nn.Sequential(nn.MaxPool2d(3, stride, 1), *[bn(c)] * pool_norm)
        case "avg":
            return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), *[bn(c)] * pool_norm)
        case "skip":
            return Reduce(c, c) if stride == 2 else nn.Identity()
        case "sep":
            return nn.Sequential(*separable(c, kernel, stride, 1), *separable(c, kernel, 1, 1))
        case "dil":
            return nn.Sequential(*separable(c, kernel, stride, 2))
    return nn.Sequential(nn.ReLU(), conv(c, c, kernel), nn.BatchNorm2d(c, affine=False, track_running_stats=False))


class Edge(nn.Module):
    """Every operation of one edge; the weighted sum."""

    def __init__(self, space: CellSpace, c: int, stride: int, partial: int):
        super().__init__()
        self.partial, self.stride = partial, stride
        self.operations = nn.ModuleList(operation(name, c // partial, stride, space.name == "darts") for name in space.operations)

    def forward(self, x: Tensor, weights: Tensor, chosen: int | None) -> Tensor:
        if chosen is not None:
            return sum(w * self.operations[chosen](x) if o == chosen else w for o, w in enumerate(weights))  # type: ignore[return-value]
        if self.partial == 1:
            return sum(w * op(x) for w, op in zip(weights, self.operations, strict=True))  # type: ignore[return-value]
        own = x.shape[1] // self.partial
        mixed = sum(w * op(x[:, :own]) for w, op in zip(weights, self.operations, strict=True))
        rest = F.max_pool2d(x[:, own:], 2, 2) if self.stride == 2 else x[:, own:]
        assert isinstance(mixed, Tensor)
        y = torch.cat([mixed, rest], 1)
        n, c, h, w_ = y.shape
        return y.view(n, self.partial, c // self.partial, h, w_).transpose(1, 2).reshape(n, c, h, w_)


class Cell(nn.Module):
    """The edges of one cell."""

    def __init__(self, space: CellSpace, kind: str, c: int, partial: int):
        super().__init__()
        self.space, self.kind = space, kind
        strides = [2 if kind == "reduce" and source < space.inputs else 1 for source, _ in space.edges]
        self.edges = nn.ModuleList(Edge(space, c, stride, partial) for stride in strides)

    def forward(self, states: list[Tensor], mixture: Mixture) -> list[Tensor]:
        for into in self.space.entering:
            node: Tensor | int = 0
            for e in range(into.start, into.stop):
                chosen = None if mixture.runs is None else mixture.runs[e][0]
                y = self.edges[e](states[self.space.edges[e][0]], mixture.weight_EO[e], chosen)
                node = node + (y if mixture.edge_E is None else mixture.edge_E[e] * y)
            assert isinstance(node, Tensor)
            states = [*states, node]
        return states


class PlainDarts(nn.Module):
    """The DARTS network with everything but the cells' edges taken from `ours`."""

    def __init__(self, ours: DartsNetwork, partial: int):
        super().__init__()
        self.stem, self.classifier = nn.Sequential(conv(3, 48, 3), nn.BatchNorm2d(48)), nn.Linear(ours.classifier.in_features, 10)
        self.join, self.cells = nn.ModuleList(), nn.ModuleList()
        for cell in ours.cells:
            for join in cell.join:
                if join.skip is not None:
                    self.join.append(Reduce(join.skip.even.shape[1], join.skip.even.shape[0] * 2))
                else:
                    c = join.conv.weight.shape[:2]
                    self.join.append(nn.Sequential(nn.ReLU(), conv(c[1], c[0]), bn(c[0])))
            self.cells.append(Cell(cell.mixed.space, cell.kind, cell.mixed.fans[0].channels * partial, partial))

    def forward(self, x: Tensor, mixtures: dict[str, Mixture], twice: bool = False) -> Tensor:
        before = last = self.stem(x)
        for number, cell in enumerate(self.cells):
            states = [self.join[2 * number](before), self.join[2 * number + 1](last)]
            before, last = last, torch.cat(cell(states, mixtures[cell.kind])[2:], 1)
        return self.classifier(last.mean((2, 3)))


class Plain201(nn.Module):
    """The NAS-Bench-201 network."""

    def __init__(self, ours: NasBench201Network):
        super().__init__()
        self.stem, self.classifier = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16)), nn.Linear(64, 10)
        self.norm = nn.BatchNorm2d(64)
        self.blocks = nn.ModuleList(
            Cell(b.space, "cell", b.fans[0].channels, 1) if isinstance(b, Mixed) else Residual(b.conv.in_channels) for b in ours.blocks
        )

    def forward(self, x: Tensor, mixtures: dict[str, Mixture], twice: bool = False) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block([x], mixtures["cell"])[-1] if isinstance(block, Cell) else block(x)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))


def pairs(ours: nn.Module, plain: nn.Module) -> Iterator[tuple[nn.Parameter, int, int, nn.Parameter]]:
    """(our tensor, of how many blocks of rows, which block, the plain network's tensor)."""
    mixed = [module for module in ours.modules() if isinstance(module, Mixed)]
    cells = [module for module in plain.modules() if isinstance(module, Cell)]
    for m, cell in zip(mixed, cells, strict=True):
        for fan, leaving in zip(m.fans, m.leaving, strict=True):
            for name, own in fan.own.items():
                for position, e in enumerate(leaving):
                    theirs = cell.edges[e].operations[fan.operations.index(name)].parameters()
                    yield from ((a, len(leaving), position, b) for a, b in zip(in_order(own), theirs, strict=True))
    joins = [join for cell in ours.cells for join in cell.join] if isinstance(ours, DartsNetwork) else []
    for join, module in zip(joins, getattr(plain, "join", []), strict=True):
        yield from ((a, 1, 0, b) for a, b in zip(join.parameters(), module.parameters(), strict=True))
    named = dict(plain.named_parameters())
    yield from ((p, 1, 0, named[name]) for name, p in ours.named_parameters() if not any(part in name for part in ("fans", "join")))


def in_order(own: nn.Module) -> list[nn.Parameter]:
    if isinstance(own, Separable):
        return [weight for pair in zip(own.depth, own.point, strict=True) for weight in pair]
    return list(own.parameters())


class Job(NamedTuple):
    """What a step works on."""

    name: str
    ours: bool
    net: nn.Module
    alphas: list[Tensor]
    weights: torch.optim.Optimizer
    architecture: torch.optim.Optimizer
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    frozen: bool


def networks(name: str, cells: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and the plain one, with the same weights."""
    torch.manual_seed(0)
    if name in ("nasbench201", "gdas"):
        ours: nn.Module = NasBench201Network(find_space("nasbench201"), channels, cells)
        plain: nn.Module = Plain201(ours)
    else:
        partial = 4 if name == "pc" else 1
        ours = DartsNetwork(find_space("darts"), channels, cells, partial=partial)
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
    for which, net in zip(("ours", "plain"), networks(name, args.blocks if name in ("nasbench201", "gdas") else 8, 16), strict=True):
        torch.manual_seed(1)
        space = find_space("nasbench201" if name in ("nasbench201", "gdas") else "darts")
        alphas = [torch.randn(len(space.edges), len(space.operations)) for _ in space.cells]
        alphas += [torch.randn(len(space.edges)) for _ in space.cells] if name == "pc" else []
        alphas = [(1e-3 * alpha).to(dtype).requires_grad_() for alpha in alphas]
        layout = torch.channels_last if which == "ours" else torch.contiguous_format
        images = torch.randn(2, args.batch, 3, 32, 32).to(dtype)
        train, valid = ((x.contiguous(memory_format=layout), torch.randint(10, (args.batch,))) for x in images)
        net = net.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        sgd = torch.optim.SGD(net.parameters(), 0.025, 0.9, weight_decay=3e-4)
        adam = torch.optim.Adam(alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3)
        found[which] = Job(name, which == "ours", net, alphas, sgd, adam, train, valid, which == "ours" or args.frozen)
    return found


def mixtures(name: str, alphas: list[Tensor], step: int) -> dict[str, Mixture]:
    """What the network is told; GDAS's draw is the same for both networks."""
    if name == "gdas":
        noise = -torch.empty_like(alphas[0]).exponential_(generator=torch.Generator().manual_seed(step)).log()
        soft = ((alphas[0].log_softmax(-1) + noise) / 10).softmax(-1)
        chosen = soft.argmax(-1)
        hard = F.one_hot(chosen, soft.shape[1]) - soft.detach() + soft
        unsampled = hard.sum(1) - hard.gather(1, chosen[:, None])[:, 0]
        return {"cell": Mixture(hard, tuple((int(o),) for o in chosen), offset_E=unsampled)}
    cells = ("cell",) if name == "nasbench201" else ("normal", "reduce")
    entering = find_space("darts").entering
    edges = [torch.cat([beta[into].softmax(0) for into in entering]) for beta in alphas[2:]] or [None, None]
    return {kind: Mixture(alpha.softmax(-1), edge_E=edge) for kind, alpha, edge in zip(cells, alphas, edges, strict=False)}


def loss_of(job: Job, batch: tuple[Tensor, Tensor], step: int, alphas: list[Tensor] | None = None) -> Tensor:
    return F.cross_entropy(job.net(batch[0], mixtures(job.name, job.alphas if alphas is None else alphas, step)), batch[1])


def fixed(job: Job) -> list[Tensor]:
    """The alphas for a step of the weights: reference codes compute their gradients too."""
    return [alpha.detach() for alpha in job.alphas] if job.frozen else job.alphas


def alpha_gradient(job: Job, batch: tuple[Tensor, Tensor], step: int) -> list[Tensor]:
    if not job.frozen:
        loss_of(job, batch, step).backward()
        return [alpha.grad for alpha in job.alphas]  # type: ignore[misc]
    job.net.requires_grad_(False)
    gradient = torch.autograd.grad(loss_of(job, batch, step), job.alphas)
    job.net.requires_grad_(True)
    return list(gradient)


def second_order(job: Job, step: int) -> list[Tensor]:
    """DARTS's: by the weights one step on, less a finite difference."""
    weights = list(job.net.parameters())
    before = [w.detach().clone() for w in weights]
    gradient = torch.autograd.grad(loss_of(job, job.train, step, [alpha.detach() for alpha in job.alphas]), weights)
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
        job.net.requires_grad_(not job.frozen)
        sides.append(torch.autograd.grad(loss_of(job, job.train, step), job.alphas))
        job.net.requires_grad_(True)
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
    logits = [job.net(job.valid[0], mixtures(name, job.alphas, 0)) for job in (ours, plain)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-12)
    gradient = second_order if name == "second" else lambda job, step: alpha_gradient(job, job.valid, step)
    torch.testing.assert_close(gradient(ours, 0), gradient(plain, 0), rtol=1e-7 if name == "second" else 1e-9, atol=1e-12)
    for job in (ours, plain):
        job.net.zero_grad()
        loss_of(job, job.train, 0, fixed(job)).backward()
    for tensor, blocks, block, other in pairs(ours.net, plain.net):
        if other.grad is not None:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad.chunk(blocks)[block], other.grad, rtol=1e-8, atol=1e-11)


def peak(name: str, which: str, args: argparse.Namespace) -> float:
    """GB of a fresh process that takes two steps."""
    words = [sys.executable, __file__, "--only", which, "--steps", name, "--batch", str(args.batch), "--threads", str(args.threads)]
    words += ["--frozen"] * args.frozen
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def compare(name: str, memory: dict[str, float], args: argparse.Namespace) -> None:
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
        line += f"{least['ours']:8.3f} {least['plain']:8.3f} {ratios[len(ratios) // 2]:5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{line} {memory['ours']:7.2f} {memory['plain']:6.2f} {memory['plain'] / memory['ours']:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="the plain network too computes no gradients that it throws away")
    parser.add_argument("--only", choices=["ours", "plain"], help="take two steps and print the peak memory in GB")
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
    print("             CPU seconds a step                  wall seconds a step                 peak GB")
    print("step            ours    plain ratio (range)        ours    plain ratio (range)        ours  plain ratio")
    # First of all: what this process has used by then counts as its children's peak.
    memory = {name: {which: peak(name, which, args) for which in ("ours", "plain")} for name in args.steps}
    for name in args.steps:
        compare(name, memory[name], args)
    print(environment()["versions"], f"{args.threads} threads, batch {args.batch}; ratios: median of {args.rounds} rounds")


if __name__ == "__main__":
    main()
