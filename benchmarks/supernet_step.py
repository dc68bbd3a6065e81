"""Time and memory of one sandwich step: channels_last, as ofa.train runs it, against PyTorch's default layout.

Both do the same work in one process, by turns, and the ratio of their medians is what counts.

    python benchmarks/supernet_step.py --space attentive_nas --batch 8 --threads 2
"""

import argparse
import copy
import resource
import statistics
import time

import torch

from engine.run import environment
from ofa.sandwich import Sandwich, sandwich_step
from ofa.space import load_space
from ofa.supernet import Supernet


def measure(net: Supernet, x: torch.Tensor, y: torch.Tensor, step: int) -> float:
    """Seconds of one step: largest, two random, smallest, forward and backward."""
    net.zero_grad()
    if x.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    sandwich_step(net, x, y, Sandwich(), seed=0, step=step)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


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
    times: dict[str, list[float]] = {"channels_last": [], "default layout": []}
    for step in range(args.rounds + 1):  # the first round warms up
        times["channels_last"].append(measure(fast, x_fast, y, step))
        times["default layout"].append(measure(plain, x, y, step))
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name:15} {seconds:.3f} s a step, {args.batch / seconds:.1f} images a second")
    print(f"ratio {medians['default layout'] / medians['channels_last']:.2f}")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(environment()["versions"])


if __name__ == "__main__":
    main()
