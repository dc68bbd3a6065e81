"""What precision costs a search, and what a running average and an evaluation cost: measured on a CPU.

    python benchmarks/precision.py --data cifar10.npz

1. How far the gradient of the architecture turns where layers compute in bfloat16 or TF32 instead of float32,
   on one batch of a DARTS search: untrained, and after some steps. A CPU has no TF32: the inputs of each
   product are rounded to it here, forward and backward, which is what a GPU does.
2. Seconds of an update of `RunningAverage` beside torch's AveragedModel, and how many kernels each takes.
3. Seconds of an evaluation within a training's precision and without.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.compute.evaluation import accuracy
from engine.compute.precision import float32_as_exported, training_in
from engine.data.npz import Npz
from engine.data.sources import load_data
from engine.optim import RunningAverage
from ofa.space.space import load_space
from ofa.supernet import Supernet
from oneshot.methods.darts import Darts
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space

PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}
TF32_DROPS = 13  # bits of a float32's 23 after the leading one


def rounded(value: Tensor) -> Tensor:
    """A float32 tensor rounded to TF32, to the nearest, ties to even."""
    bits = value.view(torch.int32)
    half = (1 << (TF32_DROPS - 1)) - 1 + ((bits >> TF32_DROPS) & 1)
    return (((bits + half) >> TF32_DROPS) << TF32_DROPS).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Rounds the inputs of every product, as a GPU with TF32 does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in PRODUCTS:
            args = [rounded(a) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))


class Count(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name not in ("aten::detach", "aten::alias")
        return func(*args, **(kwargs or {}))


def gradient(searcher: Searcher, batch: Any, within: AbstractContextManager[object]) -> tuple[Tensor, float]:
    """The gradient of all architecture parameters, and the loss."""
    objective, parameters = searcher.state.objective, searcher.state.alphas.all()
    # BatchNorm's statistics move in each forward pass, but no loss in train mode reads them.
    with within:
        value = objective.loss(batch, searcher.edge_weights("architecture", 0))
        found = torch.autograd.grad(value, parameters)
    return torch.cat([one.flatten() for one in found]), float(value.detach())


def turns(path: Path, batch: int, steps: list[int]) -> None:
    """Print how far gradients turn, after each number of steps of the search."""
    device, method, space = torch.device("cpu"), Darts(), find_space("darts")
    data = load_data(Npz(name="npz", path=path, val=0.5), device, 0)
    torch.manual_seed(0)
    network = search_network(space, method, 16, 8, len(data.classes), data.channels)
    objective = ImageObjective(network, data, batch, single_level=False)
    searcher = Searcher(method, space, objective, 0, 50)
    # A batch that the search has not seen: by how much gradients differ anyway.
    _, other = next(objective.batches(1, 0))
    print("step  precision    difference  cosine  loss")
    for number, (train, valid) in enumerate(objective.batches(0, 0)):
        if number in steps:
            exact = gradient(searcher, valid, nullcontext())
            _compare(number, "bf16", gradient(searcher, valid, training_in("bf16")), exact)
            _compare(number, "tf32", gradient(searcher, valid, Tf32()), exact)
            _compare(number, "once more", gradient(searcher, valid, nullcontext()), exact)
            _compare(number, "other batch", gradient(searcher, other, nullcontext()), exact)
        if number == max(steps):
            return
        searcher.step(number, train, valid)


def _compare(number: int, name: str, found: tuple[Tensor, float], exact: tuple[Tensor, float]) -> None:
    """Print a gradient and a loss beside those in float32."""
    difference = float((found[0] - exact[0]).norm() / exact[0].norm())
    cosine = float(torch.nn.functional.cosine_similarity(found[0], exact[0], dim=0))
    change = abs(found[1] / exact[1] - 1)
    print(f"{number:4}  {name:11}  {difference:10.2%}  {cosine:.5f}  {change:.4%}", flush=True)


def seconds(call: Callable[[], object], times: int = 20) -> float:
    """The least seconds of a call."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def averages(space: str) -> None:
    """Print what an update of each average costs on a supernet."""
    supernet = Supernet(load_space(space), 1000, 3)
    ours = RunningAverage(supernet, 0.999)
    average: Any = get_ema_multi_avg_fn(0.999)  # type: ignore[no-untyped-call]
    theirs = AveragedModel(supernet, multi_avg_fn=average)
    for name, call in (
        ("RunningAverage", ours.update),
        ("AveragedModel", lambda: theirs.update_parameters(supernet)),
    ):
        call()
        with Count() as counted:
            call()
        print(f"{space}: {name} {seconds(call) * 1e3:.2f} ms, {counted.count} operations", flush=True)


def exported() -> None:
    """Go into the block of an evaluation and out again."""
    with float32_as_exported():
        pass


def evaluations() -> None:
    """Print what an evaluation's precision costs beside its images."""
    batches = [(torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))]
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))

    def evaluate() -> float:
        return accuracy(layer, batches)

    print(f"an accuracy of one tiny image: {seconds(evaluate, 200) * 1e6:.0f} us", end=", ")
    print(f"of which precision: {seconds(exported, 200) * 1e6:.0f} us", flush=True)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz file of images of 32 x 32 pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 20])
    parser.add_argument("--space", default="attentive_nas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    averages(given.space)
    evaluations()
    if given.data:
        turns(given.data, given.batch, given.steps)


if __name__ == "__main__":
    main()
