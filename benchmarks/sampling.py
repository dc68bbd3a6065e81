"""What drawing by MACs costs: seconds of CPU to estimate p(choice | MACs), microseconds a draw, how often
tries hit their bin, and the share of a training step that BestUp's judge adds.

    python benchmarks/sampling.py --space attentive_nas --threads 1
    python benchmarks/sampling.py --space small128 --size 128 --batch 32 --threads 1 --rounds 20
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from engine.run import environment
from ofa.space.codes import sample
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.training.sampling import Attentive, MacsPrior, Prior, Uniform, build_sampler
from ofa.training.sandwich import Sandwich, sandwich_step


def seconds(work: Callable[[], object]) -> float:
    """Of CPU, which other processes disturb less than the clock."""
    started = time.process_time()
    work()
    return time.process_time() - started


def report_draws(space: Space) -> Prior:
    found = []
    print(f"estimated in {seconds(lambda: found.append(Prior(MacsPrior(), space, 1000, 3))):.2f} s")
    prior, rng = found[0], np.random.default_rng(0)
    draws = {f"{k} candidates": (lambda k=k: prior.draw(rng, 1, k)) for k in (1, 3, 50)} | {
        "uniform": lambda: sample(space, rng)
    }
    for name, draw in draws.items():
        print(f"{name:14} {statistics.median(seconds(draw) for _ in range(50)) * 1e6:.0f} us")
    return prior


def report_hits(prior: Prior) -> None:
    """What is drawn is one of the known samples if every try missed. In a small space also by chance."""
    known = {row.tobytes() for row in prior.known_NF}
    for tries in (1, 100):
        prior.tries = tries
        rows = prior.draw(np.random.default_rng(0), 5_000, 1)[:, 0]
        print(
            f"within {tries} tries {1 - np.mean([row.tobytes() in known for row in rows]):.2%} of 5,000 "
            "draws hit their bin"
        )


def report_steps(space: Space, size: int, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    net = Supernet(space, 1000).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch,))
    for sampling in (Uniform(), MacsPrior(), Attentive()):
        sampler = build_sampler(sampling, space, 1000, 3)

        def step(i: int, sampler: object = sampler) -> None:
            net.zero_grad()
            sandwich_step(net, x, y, i, Sandwich(), sampler)

        found = [seconds(lambda i=i: step(i)) for i in range(rounds + 1)]
        print(f"step, {sampling.name:10} {statistics.mean(found[1:]):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="attentive_nas")
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=0, help="steps to time for each sampler; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    space = load_space(args.space)
    report_hits(report_draws(space))
    if args.rounds:
        report_steps(space, args.size, args.batch, args.rounds)
    print(environment()["versions"])


if __name__ == "__main__":
    main()
