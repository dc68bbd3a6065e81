"""The backward passes of a training step, and the mean of their gradients over ranks.

A step has several backward passes, whose gradients add up. So they are final only in the last one, and the
hooks of DistributedDataParallel, which send in every pass, do not fit. Here gradients are sent in the last
pass alone, in buckets of one flat tensor: while the pass still computes the gradients of the first layers,
those of the last layers are on their way.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.compute.distributed import Ranks, or_say_who_is_gone

# A larger bucket uses a connection better, a smaller one starts earlier. DistributedDataParallel's default.
BUCKET_BYTES = 25 * 2**20
Backward = Callable[[Tensor], None]  # runs the backward pass of a loss ()


class Passes:
    """The backward passes of one step, which add gradients to the parameters: here without anything else."""

    def backward(self, loss: Tensor) -> None:
        """A pass that others follow."""
        loss.backward()  # type: ignore[no-untyped-call]

    def last_backward(self, loss: Tensor) -> None:
        """The last pass of the step."""
        self.backward(loss)


class GradientAverage(Passes):
    """Passes whose gradients become their mean over the ranks.

        optimizer.zero_grad()
        average.backward(first_loss)
        average.last_backward(second_loss)
        losses = average.finish(losses)
        optimizer.step()

    A rank that did not use a weight (its gradient is None) counts as a gradient of zero. A weight that no
    rank used keeps None everywhere, so the optimiser neither decays nor moves it, as in one process.

    Args:
        parameters: those of the network, in the same order on every rank, all of one dtype.
        ranks: the processes that train together; one process averages nothing.
        bucket_bytes: size of what is sent at once.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, bucket_bytes: int = BUCKET_BYTES):
        self.ranks = ranks
        # Backward computes the gradients of the last layers first.
        self.parameters = [p for p in parameters if p.requires_grad][::-1]
        self.buckets = _buckets(self.parameters, bucket_bytes)
        self.bucket_of: dict[nn.Parameter, int] = {}
        for number, bucket in enumerate(self.buckets):
            self.bucket_of |= dict.fromkeys(bucket, number)
        self.flat: Tensor | None = None  # all gradients one after another; made when it is needed
        self.means: dict[nn.Parameter, Tensor] = {}  # views of `flat`, laid out like the weights
        # Of the step under way: how many gradients of each bucket are not final; the buckets that are sent.
        self.unfinished = [0] * len(self.buckets)
        self.under_way: list[dist.Work] = []
        # Each gradient as it was sent: which tensor, and how often it had been written.
        self.sent: dict[nn.Parameter, tuple[int, int]] = {}

    def last_backward(self, loss: Tensor) -> None:
        """The last pass of the step, which sends each bucket but the last one when it is complete."""
        if self.ranks.size == 1 or len(self.buckets) == 1:
            self.backward(loss)
            return
        # What this pass does not reach has its final gradient already.
        reached = _leaves(loss)
        hooks: list[RemovableHandle] = []
        self.unfinished = [0] * len(self.buckets)
        for parameter in self.parameters:
            if parameter in reached:
                self.unfinished[self.bucket_of[parameter]] += 1
                hook = parameter.register_post_accumulate_grad_hook(self._is_final)  # type: ignore[no-untyped-call]
                hooks.append(hook)
        try:
            self.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, losses: Tensor) -> Tensor:
        """Replace the gradients by their mean over the ranks, after the last pass. All ranks must call this.

        Args:
            losses: of this rank (L,).

        Returns:
            The losses (L,), averaged over the ranks.
        """
        if self.ranks.size == 1:
            return losses
        while len(self.under_way) < len(self.buckets):
            self._send(len(self.under_way))
        # A layer may write gradients past the hooks, by itself; then everything is sent once more.
        late = any(self.sent[p] != _written(p) for p in self.parameters)
        used = [p.grad is not None for p in self.parameters]
        *used_by_any, late_on_any = self.ranks.maxima([*used, late])
        if late_on_any:
            self._wait()
            for number in range(len(self.buckets)):
                self._send(number)
        means = losses.clone()
        self.under_way.append(_begin_sum(means))
        self._wait()
        assert self.flat is not None
        self.flat /= self.ranks.size
        for parameter, is_used in zip(self.parameters, used_by_any, strict=True):
            parameter.grad = self.means[parameter] if is_used else None
        return means / self.ranks.size

    def _is_final(self, parameter: Tensor) -> None:
        """Send the buckets that this gradient completes; in their order, which must be that of all ranks."""
        assert isinstance(parameter, nn.Parameter)
        self.unfinished[self.bucket_of[parameter]] -= 1
        # Nothing would be computed beside the last bucket, so `finish` sends it.
        while len(self.under_way) < len(self.buckets) - 1 and not self.unfinished[len(self.under_way)]:
            self._send(len(self.under_way))

    @torch.no_grad()
    def _send(self, number: int) -> None:
        """Copy the gradients of a bucket into the flat tensor and begin to sum them over the ranks."""
        if self.flat is None:
            self._make_flat()
        assert self.flat is not None
        bucket = self.buckets[number]
        targets: list[Tensor] = []
        gradients: list[Tensor] = []
        unused: list[Tensor] = []
        for parameter in bucket:
            self.sent[parameter] = _written(parameter)
            if parameter.grad is None:
                unused.append(self.means[parameter])
            else:
                targets.append(self.means[parameter])
                gradients.append(parameter.grad)
        # A few kernels instead of one for each of hundreds of weights.
        if targets:
            torch._foreach_copy_(targets, gradients)
        if unused:
            torch._foreach_zero_(unused)
        start = self.means[bucket[0]].storage_offset()
        numbers = sum(parameter.numel() for parameter in bucket)
        self.under_way.append(_begin_sum(self.flat[start : start + numbers]))

    def _make_flat(self) -> None:
        self.flat = self.parameters[0].new_empty(sum(parameter.numel() for parameter in self.parameters))
        start = 0
        for parameter in self.parameters:
            # Laid out like the weights, so that the optimiser meets no odd strides.
            self.means[parameter] = self.flat.as_strided(parameter.shape, parameter.stride(), start)
            start += parameter.numel()

    def _wait(self) -> None:
        with or_say_who_is_gone():
            for work in self.under_way:
                work.wait()
        self.under_way = []


def _begin_sum(values: Tensor) -> dist.Work:
    """Begin to sum `values` over the ranks, in place."""
    with or_say_who_is_gone():
        work = dist.all_reduce(values, async_op=True)
    assert work is not None
    return work


def _written(parameter: nn.Parameter) -> tuple[int, int]:
    """Which tensor the gradient is, and how often it was written."""
    gradient = parameter.grad
    return (0, 0) if gradient is None else (id(gradient), gradient._version)


def _buckets(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Parameters in their order, divided into parts of about `size` bytes."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if room <= 0:
            buckets.append([])
            room = size
        buckets[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return buckets


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors whose gradients a backward pass from `loss` will add to."""
    leaves: set[Tensor] = set()
    seen = set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # A node that accumulates the gradient of a leaf, and only such a one, names its variable.
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    return leaves
