"""Several processes that train one model: which one this is, and what they tell each other.

torchrun starts the processes and tells each in environment variables that it is rank r of n. Without torchrun
there is one process, no process group is made, and every method of `Ranks` returns what it was given. A
training step here has several backward passes, so `engine.compute.gradients` averages gradients instead of
the hooks of DistributedDataParallel.

Facts that the CPU needs (a rank wants to stop, a rank used a weight) travel over a gloo group between the
CPUs, even where gradients travel over NCCL. So no rank waits for its GPU to learn them, and the other ranks
notice a rank that died, since its connection closes.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from engine.command.launch import started
from engine.compute.device import pick_device
from engine.errors import UserError
from engine.seed import derive

# Ranks wait this long for one that evaluates or saves. A rank that died is noticed at once all the same.
PATIENCE = timedelta(hours=6)
CHECKPOINT_STAYS = (
    "the last checkpoint stays: see what it said, then continue with the same command and --resume"
)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Args:
        rank: the number of this process, from 0.
        size: how many processes there are.
        host: their gloo group; None: the default group, which is then gloo itself.
        store: in which they found each other; None: there is one process.
    """

    rank: int = 0
    size: int = 1
    host: dist.ProcessGroup | None = None
    store: Store | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Which images of a batch of `batch_size` are this rank's.

        Raises:
            UserError: the batch cannot be divided evenly, two images or more for each rank.
        """
        own = batch_size // self.size
        # Equal shares, since the mean over ranks is then the mean over images; two images for BatchNorm.
        if self.size > 1 and (batch_size % self.size or own < 2):
            near = max(2, round(batch_size / self.size)) * self.size
            raise UserError(
                f"A batch of {batch_size} images cannot be divided among {self.size} processes, two or more "
                f"images each; --batch-size counts the images of all of them: use {near}."
            )
        return slice(self.rank * own, (self.rank + 1) * own)

    def seed(self, seed: int, rank: int | None = None) -> int:
        """This rank's own seed, or that of `rank`.

        Rank 0 has the seed of the run, so that a single process draws what it draws without torchrun.
        """
        rank = self.rank if rank is None else rank
        return derive(seed, "rank", rank) if rank else seed

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank. All ranks must ask, and each waits until all have asked."""
        return bool(self.maxima([flag])[0])

    def total(self, values: Sequence[float]) -> list[float]:
        """Each of `values` summed over the ranks, in double precision. All ranks must ask."""
        return list(values) if self.size == 1 else self._on_host(values, dist.ReduceOp.SUM)

    def maxima(self, values: Sequence[float]) -> list[float]:
        """The largest of each of `values` over the ranks. All ranks must ask."""
        return list(values) if self.size == 1 else self._on_host(values, dist.ReduceOp.MAX)

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first rank runs the block before the others do, as where it may download what all read."""
        # `any` waits for all ranks: the others wait here until the first one has come to its own call.
        if not self.first:
            self.any(False)
        yield
        if self.first:
            self.any(False)

    def _on_host(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        # float64 holds flags, step numbers and scores alike.
        table = torch.tensor(values, dtype=torch.float64)
        with or_say_who_is_gone():
            dist.all_reduce(table, how, self.host)
        return table.tolist()


ALONE = Ranks()


@contextlib.contextmanager
def join(device: str, remedy: str = CHECKPOINT_STAYS) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that torchrun started, and its device.

    With `auto` or `cuda` each process gets a GPU of its own.

    Args:
        device: the name that the user gave.
        remedy: what is kept, and what to do, if the processes do not find each other.

    Raises:
        UserError: the device does not exist or cannot be shared, or another process is gone.
    """
    rank, size = started()
    if size == 1:
        yield ALONE, pick_device(device)
        return
    own = pick_device(_own_device(device))
    host: Any = None
    with or_say_who_is_gone(remedy):
        store, rank, size = next(rendezvous("env://"))
        found: dict[str, Any] = {"store": store, "rank": rank, "world_size": size}
        if own.type == "cuda":
            torch.cuda.set_device(own)
            # With its device NCCL connects the ranks at once, not in the first step, and on its own GPU.
            dist.init_process_group("nccl", device_id=own, **found)
            host = dist.new_group(backend="gloo", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE, **found)
    # Names of its own, since the process groups keep theirs in the same store.
    yield Ranks(rank, size, host, PrefixStore("shared work", store)), own
    dist.destroy_process_group()  # not after an error: NCCL would wait for the ranks that are gone


def _own_device(name: str) -> str:
    """The device of this process among those on its machine, for the `name` that the user gave."""
    gpus = torch.cuda.device_count()
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
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
def or_say_who_is_gone(remedy: str = CHECKPOINT_STAYS) -> Iterator[None]:
    """Turn the error of a connection that closed into a sentence.

    Args:
        remedy: how the sentence ends: what is kept, and what to do.
    """
    try:
        yield
    except RuntimeError as error:
        # Without the names of torch's source files, which stand first, and without its advice, which follows.
        first_line = str(error).splitlines()[0]
        reason = re.sub(r"\[\S+:\d+\] ", "", first_line).split(". ")[0]
        raise UserError(
            f"Another of the processes that work together ended or cannot be reached ({reason}); {remedy}."
        ) from None


def batch_norm(x_NCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm in train mode whose mean and variance are those of all ranks' images.

    Every rank must have the same number of images. The gradient also flows to the images of the other ranks,
    so that the weights' gradients, averaged over ranks, are those of one process on the joined batch.

    Args:
        x_NCHW: this rank's images.
        weight: scale (C,).
        bias: shift (C,).
        eps: what is added to the variance.
    """
    y_NCHW, _, _ = _JoinedBatchNorm.apply(x_NCHW, weight, bias, eps)
    return y_NCHW


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, with scale and shift, whose statistics in training are those of all ranks' images.

    Every rank must have the same number of images.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """In evaluation mode it is torch's."""
        if not self.training:
            return super().forward(x_NCHW)
        y_NCHW, mean, var = _JoinedBatchNorm.apply(x_NCHW, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            count = x_NCHW.numel() // x_NCHW.shape[1] * dist.get_world_size()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            # torch keeps the unbiased variance.
            unbiased = var * (count / max(1, count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return y_NCHW


def join_batch_norms_2d(network: nn.Module) -> None:
    """Let the BatchNorm2d of a network take their statistics over all ranks' images, from now on.

    All ranks must run the same layers from then on. Parameters, buffers and their names stay.
    """
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine:
            # The class is all that changes: optimisers and checkpoints hold these very tensors.
            module.__class__ = JoinedBatchNorm2d


class _JoinedBatchNorm(torch.autograd.Function):
    """Batch Normalization (2015, arXiv:1502.03167) over all ranks.

    Forward and backward need one all-reduce each, of two numbers a channel. torch's own kernels do the passes
    over the images; plain operations that do the same take ten times as long on CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, own_mean, own_inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        # torch returns 1 / sqrt(variance + eps). In double, since the difference of squares below cancels.
        own_mean, own_var = own_mean.double(), own_inverse.double() ** -2 - eps
        mean, square = _mean_over_ranks(torch.stack([own_mean, own_var + own_mean**2]))
        mean, var = mean.to(weight.dtype), (square - mean**2).to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        args = (grad_y, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True])
        # First the gradient as if mean and variance were constants.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(*args)
        # But they depend on x. What they pass back is a line in x, weight / deviation * (offset + slope *
        # (x - mean) / deviation), which is subtracted; 1 / (values a channel) makes means of sums.
        slope, offset = _mean_over_ranks(torch.stack([grad_weight, grad_bias]) * (len(mean) / x.numel()))
        inverse = (var + ctx.eps).rsqrt()
        rise = -weight * inverse**2 * slope
        start = -weight * inverse * offset - rise * mean
        grad_x = torch.addcmul(grad_x, x, rise[:, None, None]).add_(start[:, None, None])
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _mean_over_ranks(own: Tensor) -> Tensor:
    """The mean over the ranks. `own` holds the sum afterwards."""
    with or_say_who_is_gone():
        dist.all_reduce(own)
    return own / dist.get_world_size()
