"""Time and memory of one sandwich step, ours against plain eager layers as reference code has them.

The plain network is `ofa.subnet.Subnet`, ordinary torch layers in the default layout with swish as an
autograd.Function of its own that keeps its input, called with the slices of the supernet: the same
architectures, weights and images. Losses and gradients are compared first. Both then run by turns in one
process, without regularisation; the ratios are what counts. CPU time is disturbed less by other processes
than the clock, best with one thread. Peak memory is that of a fresh process for each.

    python benchmarks/supernet_step.py --space attentive_nas --batch 8 --threads 2
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from engine.compute.memory import keep_freed_memory
from engine.data.augment import resize
from engine.run import environment
from engine.seed import numpy_generator
from ofa.space.arch import Arch, largest, smallest
from ofa.space.space import load_space
from ofa.subnet import Subnet
from ofa.supernet import Supernet
from ofa.training.losses import soft_cross_entropy
from ofa.training.sampling import UniformSampler
from ofa.training.sandwich import Sandwich, sandwich_step

CONFIG = Sandwich(dropout=0, drop_connect=0)


class SwishByHand(torch.autograd.Function):
    """x sigmoid(x) that keeps x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * (gate * (1 + x * (1 - gate)))


class Swish(nn.Module):
    """The module of it."""

    def forward(self, x: Tensor) -> Tensor:
        return SwishByHand.apply(x)


def plain_network(net: Supernet, arch: Arch) -> Subnet:
    with torch.device("meta"):
        subnet = Subnet(net.space, arch, net.classes)
    for module in list(subnet.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, Swish())
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.num_batches_tracked = 0.0, None
    return subnet


def plain_step(net: Supernet, x: Tensor, y: Tensor, step: int) -> Tensor:
    losses, teacher = [], None
    random = UniformSampler(net.space).draw(
        numpy_generator(0, "subnets", step), CONFIG.random, lambda archs: []
    )
    for arch in [largest(net.space), *random, smallest(net.space)]:
        logits = functional_call(plain_network(net, arch), net.slices(arch), resize(x, arch.resolution))
        if teacher is None:
            loss, teacher = (
                F.cross_entropy(logits, y, label_smoothing=CONFIG.label_smoothing),
                logits.detach(),
            )
        else:
            loss = soft_cross_entropy(logits, teacher)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def our_step(net: Supernet, x: Tensor, y: Tensor, step: int) -> Tensor:
    return sandwich_step(net, x, y, step, CONFIG)


STEP: dict[str, Callable[[Supernet, Tensor, Tensor, int], Tensor]] = {"ours": our_step, "plain": plain_step}


def prepared(name: str, args: argparse.Namespace) -> tuple[Supernet, Tensor, Tensor]:
    """The network, images and labels of a variant, the same for both but for the layout."""
    torch.manual_seed(0)
    layout = torch.channels_last if name == "ours" else torch.contiguous_format
    net = Supernet(load_space(args.space), 1000)
    for module in net.modules():  # a residual branch that starts at zero has no gradients to compare
        if isinstance(getattr(module, "running_mean", None), Tensor):
            nn.init.uniform_(module.weight, 0.5, 1)
    x, y = torch.randn(args.batch, 3, args.size, args.size), torch.randint(1000, (args.batch,))
    return (
        net.to(args.device, memory_format=layout),
        x.to(args.device, memory_format=layout),
        y.to(args.device),
    )


def timed(name: str, job: tuple[Supernet, Tensor, Tensor], step: int) -> tuple[float, float]:
    """Seconds of CPU, all threads together, and of wall time."""
    job[0].zero_grad()
    cpu, wall = time.process_time(), time.perf_counter()
    STEP[name](*job, step)
    if job[1].is_cuda:
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(name: str, args: argparse.Namespace) -> str:
    """GB of a fresh process that takes two steps."""
    words = [sys.executable, __file__, "--only", name, "--space", args.space, "--device", args.device]
    words += ["--batch", str(args.batch), "--size", str(args.size), "--threads", str(args.threads)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def compare(args: argparse.Namespace) -> None:
    jobs = {name: prepared(name, args) for name in STEP}
    losses = {name: STEP[name](*job, 0) for name, job in jobs.items()}
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-4, atol=1e-4)
    ours, plain = (
        torch.cat([p.grad.flatten() for p in jobs[name][0].parameters() if p.grad is not None])
        for name in STEP
    )
    error = float(
        (ours - plain).norm() / plain.norm()
    )  # of all: a bias before BatchNorm has only rounding for a gradient
    assert error < 1e-3
    print(f"losses agree; the gradient differs by {error:.1e} of its norm")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in STEP}
    for step in range(args.rounds):
        for name, job in jobs.items():
            taken[name].append(timed(name, job, step))
    # The rounds are different architectures: what was disturbed least is seen by the ratio within a round.
    for place, clock in enumerate(("CPU", "wall")):
        ratios = sorted(b[place] / a[place] for a, b in zip(taken["ours"], taken["plain"], strict=True))
        for name in STEP:
            least = min(t[place] for t in taken[name])
            print(f"{name:6} {clock:4} least {least:.2f} s a step, {args.batch / least:.1f} images a second")
        print(
            f"ours is {ratios[len(ratios) // 2]:.2f} times faster by {clock} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="attentive_nas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=list(STEP), help="take two steps and print the peak memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only != "plain":
        keep_freed_memory()
    if args.only:
        job = prepared(args.only, args)
        for step in range(2):
            timed(args.only, job, step)
        print(
            f"{args.only:6} peak memory "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB"
        )
        return
    for name in STEP:
        print(peak(name, args))
    compare(args)
    print(environment()["versions"])


if __name__ == "__main__":
    main()
