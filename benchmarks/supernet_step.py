"""Time and memory of one sandwich step as ofa.train runs it, without keeping freed memory, and in PyTorch's default layout too.

All do the same work in one process; the ratios of their medians are what counts. Times are of CPU on the CPU, which other
processes disturb less than the clock.

    python benchmarks/supernet_step.py --space attentive_nas --batch 8 --threads 2
"""

import argparse
import copy
import resource
import statistics
import time

import torch

from engine.device import keep_freed_memory
from engine.run import environment
from ofa.sampling import UniformSampler
from ofa.sandwich import Sandwich, sandwich_step
from ofa.space import load_space
from ofa.supernet import Supernet


def measure(net: Supernet, x: torch.Tensor, y: torch.Tensor, step: int) -> float:
    """Seconds of one step: largest, two random, smallest, forward and backward; of CPU, all threads together, on the CPU."""
    net.zero_grad()
    if x.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if x.is_cuda else time.process_time
    started = clock()
    sandwich_step(net, x, y, Sandwich(), UniformSampler(net.space), seed=0, step=step)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="attentive_nas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plain = Supernet(load_space(args.space), 1000).to(args.device)
    x, y = torch.randn(args.batch, 3, args.size, args.size, device=args.device), torch.randint(1000, (args.batch,), device=args.device)
    fast, x_fast = copy.deepcopy(plain).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    variants = {"ours": (fast, x_fast, True), "freed memory given back": (fast, x_fast, False), "default layout too": (plain, x, False)}
    medians = {}
    for name, (net, images, keep) in variants.items():  # not by turns: each needs a heap in its own steady state
        keep_freed_memory(keep)
        seconds = [measure(net, images, y, step) for step in range(args.rounds + 1)]
        medians[name] = statistics.median(seconds[1:])
    for name, seconds in medians.items():
        print(f"{name:24} {seconds:.3f} s a step, {args.batch / seconds:.1f} images a second, ratio {seconds / medians['ours']:.2f}")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(environment()["versions"])


if __name__ == "__main__":
    main()
