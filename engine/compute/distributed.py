"""Several processes that train one model: which of them this one is, and the few things they tell each other.

torchrun starts the processes and says in environment variables which is which; this is rank r of n. Without
torchrun there is one process, no process group is made, and every method of `Ranks` gives back what it was
given. A step of ours has several backward passes, so gradients are averaged once at its end, in one flat
all-reduce, instead of by DistributedDataParallel's hooks.

Small facts of the host (somebody wants to stop, who used which weight) travel on their own gloo group, on CPU
also beside NCCL: no process ever waits for its GPU to learn them, and a process that died is noticed there,
since its connection closes.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from engine.command.launch import started
from engine.compute.device import pick_device
from engine.errors import UserError
from engine.seed import derive

PATIENCE = timedelta(
    hours=6
)  # for one that evaluates or saves longer than the others; a dead one is noticed at once


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. host: their gloo group; None: the default one."""

    rank: int = 0
    size: int = 1
    host: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Which images of a batch of `batch_size` are this rank's.

        Raises:
            UserError: it cannot be divided.
        """
        own = batch_size // self.size
        if self.size > 1 and (batch_size % self.size or own < 2):
            near = max(2, round(batch_size / self.size)) * self.size
            raise UserError(
                f"A batch of {batch_size} images cannot be divided among {self.size} processes, two or more "
                "images each; "
                f"--batch-size counts the images of all of them: use {near}."
            )
        return slice(self.rank * own, (self.rank + 1) * own)

    def seed(self, seed: int, rank: int | None = None) -> int:
        """This rank's own seed, or that of `rank`. Rank 0's is the run's, so that one process draws what it
        always drew."""
        rank = self.rank if rank is None else rank
        return derive(seed, "rank", rank) if rank else seed

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank. All ranks must ask; none goes on before all have."""
        return flag if self.size == 1 else bool(self._on_host([flag], dist.ReduceOp.MAX)[0])

    def total(self, values: Sequence[float]) -> list[float]:
        """Each of `values` summed over the ranks, in double precision."""
        return list(values) if self.size == 1 else self._on_host(values, dist.ReduceOp.SUM)

    def average_gradients(self, parameters: Iterator[torch.nn.Parameter], losses: Tensor) -> Tensor:
        """Replace gradients by their mean over the ranks, and return the mean `losses`: one all-reduce for
        both.

        A rank that did not use a weight (its gradient is None) counts as a gradient of zero. A weight that no
        rank used keeps None everywhere, so the optimiser neither decays nor moves it, as in one process.
        """
        if self.size == 1:
            return losses
        known = list(parameters)
        used = self._on_host([p.grad is not None for p in known], dist.ReduceOp.MAX)
        shared = [p for p, flag in zip(known, used, strict=True) if flag]
        count = sum(p.numel() for p in shared)
        flat = shared[0].new_zeros(count + len(losses))
        flat[count:] = losses
        starts = accumulate((p.numel() for p in shared), initial=0)
        mean = [
            flat.as_strided(p.shape, p.stride(), at) for p, at in zip(shared, starts, strict=False)
        ]  # laid out like the weights
        own = [(m, p.grad) for m, p in zip(mean, shared, strict=True) if p.grad is not None]
        torch._foreach_copy_([m for m, _ in own], [g for _, g in own])
        with _or_say_who_is_gone():
            dist.all_reduce(flat)
        flat /= self.size
        for p, gradient in zip(shared, mean, strict=True):
            p.grad = gradient
        return flat[count:].to(losses.dtype, copy=True)  # a view would keep all of `flat`

    def _on_host(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        table = torch.tensor(values, dtype=torch.float64)
        with _or_say_who_is_gone():
            dist.all_reduce(table, how, self.host)
        return table.tolist()


ALONE = Ranks()


@contextlib.contextmanager
def join(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that torchrun started, and its device: with `auto` or `cuda` each has a GPU of
    its own.

    Raises:
        UserError: the device does not exist or cannot be shared, or another process is gone.
    """
    rank, size = started()
    if size == 1:
        yield ALONE, pick_device(device)
        return
    own = pick_device(_own_device(device))
    host: Any = None
    with _or_say_who_is_gone():
        if own.type == "cuda":
            torch.cuda.set_device(own)
            dist.init_process_group("nccl", device_id=own)
            host = dist.new_group(backend="gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    yield Ranks(rank, size, host), own
    dist.destroy_process_group()  # not after an error: NCCL would wait for the ranks that are gone


def _own_device(name: str) -> str:
    gpus, local, count = (
        torch.cuda.device_count(),
        int(os.environ["LOCAL_RANK"]),
        int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"Device '{name}' is one device, but {count} processes need their own; use auto, cpu, or cuda, "
            "which gives each one."
        )
    if name == "cpu" or gpus == 0:
        return name
    if count > gpus:
        raise UserError(
            f"{count} processes need a GPU each, but this machine has {gpus}; use --nproc-per-node {gpus}, "
            "or --device cpu."
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def _or_say_who_is_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"\[\S+:\d+\] ", "", str(error).splitlines()[0]).split(". ")[
            0
        ]  # without torch's source files and its advice
        raise UserError(
            f"Another of the processes that train together ended or cannot be reached ({reason}); "
            "the last checkpoint stays: see what it said, then continue with the same command and --resume."
        ) from None


def batch_norm(x_NCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm in train mode whose mean and variance are those of all ranks' images; every rank must have as
    many.

    Its gradient reaches the images of the other ranks, too: the mean over ranks of the weights' gradients is
    that of one process on the joined batch.
    """
    return _JoinedBatchNorm.apply(x_NCHW, weight, bias, eps)


class _JoinedBatchNorm(torch.autograd.Function):
    """Batch Normalization (2015, arXiv:1502.03167), with one all-reduce of two numbers a channel in each
    direction.

    torch's own kernels do the passes over images: composed of plain operations they take ten times as long on
    CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        _, own_mean, own_inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        own_mean, own_var = own_mean.double(), own_inverse.double() ** -2 - eps
        mean, square = _mean_over_ranks(torch.stack([own_mean, own_var + own_mean**2]))
        mean, var = mean.to(weight.dtype), (square - mean**2).to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        args = (grad_y, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True])
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            *args
        )  # as if mean and var were constants
        slope, offset = _mean_over_ranks(torch.stack([grad_weight, grad_bias]) * (len(mean) / x.numel()))
        # They are not: weight / deviation * (offset + slope * (x - mean) / deviation) is what they pass back,
        # a line in x.
        inverse = (var + ctx.eps).rsqrt()
        rise = -weight * inverse**2 * slope
        start = -weight * inverse * offset - rise * mean
        grad_x = torch.addcmul(grad_x, x, rise[:, None, None]).add_(start[:, None, None])
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _mean_over_ranks(own: Tensor) -> Tensor:
    """The mean, which also takes the place of `own`."""
    with _or_say_who_is_gone():
        dist.all_reduce(own)
    return own / dist.get_world_size()
