"""Progressive shrinking (OFA, 2020, arXiv:1908.09791): the largest network first, then kernels, depths and
widths become elastic.

A phase says how many of the largest choices of each kind are open, and how many subnets of those a step
trains. What a phase trained stays trained: later phases only add choices. From the second phase on the
largest network as it was at the end of the first teaches (in train mode, without dropout); where expansions
become elastic, channels are sorted first, so that the ones that stay are the most important. Each phase
starts with a fresh optimiser, as in the reference code.
"""

from bisect import bisect_right
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.checkpoint import load_weights
from engine.compute.device import autocast
from engine.config import Config
from engine.seed import numpy_generator
from ofa.blocks.layer_specs import hidden_width, squeeze_width
from ofa.space.space import Arch, Codes, Space, canonical, decode, largest
from ofa.subnet import Subnet, extract
from ofa.supernet import Block, Bottleneck, Supernet
from ofa.training.losses import soft_cross_entropy
from ofa.training.sandwich import Sandwich, label_step

TEACHER = "teacher.safetensors"


class Phase(Config):
    """One phase. `kernel`, `depth`, `expand` and `width` count the largest choices that are open in every
    stage; none: all.

    A deep stem's middle width goes with `width` and its residual convolutions with `depth`.
    """

    name: str = Field(description="what the log calls it")
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, description="learning rate at its highest")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up from 0")
    subnets: int = Field(
        1, ge=0, description="random subnets a step; 0: the largest learns from the labels alone"
    )
    kernel: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    expand: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)

    def open(self, space: Space) -> Codes:
        """(F,) how many of the largest choices of each column are open. Resolutions always all are."""
        limits = {
            "kernel": self.kernel,
            "depth": self.depth,
            "expand": self.expand,
            "width": self.width,
            "resolution": None,
        }
        kinds = [
            ("width", "depth")[column.position] if column.field == "stem" else column.field
            for column in space.columns
        ]
        return np.minimum([limits[kind] or 255 for kind in kinds], space.cardinalities).astype(np.uint8)

    def sample(self, space: Space, rng: np.random.Generator, resolution: int | None = None) -> Arch:
        """An architecture of this phase, every open choice uniform; its resolution is drawn, too, unless
        given."""
        codes = space.cardinalities.astype(np.uint8) - rng.integers(0, self.open(space), dtype=np.uint8)
        arch = decode(space, canonical(space, codes[None])[0])
        return arch if resolution is None else arch.model_copy(update={"resolution": resolution})

    def smallest(self, space: Space) -> Arch:
        """The architecture of this phase with its first open choice everywhere."""
        codes = (space.cardinalities - self.open(space) + 1).astype(np.uint8)
        return decode(space, canonical(space, codes[None])[0])


LARGEST = Phase(name="largest", epochs=1, lr=1.0, subnets=0, kernel=1, depth=1, expand=1, width=1)


class Place(NamedTuple):
    """Where a step is: the number of its phase, and the steps at which that begins and ends."""

    phase: int
    start: int
    end: int


def place(phases: tuple[Phase, ...], steps: int, step: int) -> Place:
    """The place of `step` (from 0), with `steps` in an epoch."""
    ends = list(accumulate(phase.epochs * steps for phase in phases))
    number = bisect_right(ends[:-1], step)
    return Place(number, ends[number] - phases[number].epochs * steps, ends[number])


def drawn_resolution(space: Space, seed: int, step: int) -> int:
    """The resolution at which a step sees its batch; the same on every rank."""
    return int(numpy_generator(seed, "resolution", step).choice(space.resolution))


def shrinking_step(
    supernet: Supernet,
    teacher: Subnet | None,
    x: Tensor,
    y: Tensor,
    phase: Phase,
    config: Sandwich,
    seed: int,
    step: int,
    noise_seed: int,
) -> Tensor:
    """Add the gradients of one step to the supernet's. Returns the losses (max(1, subnets),), detached, on
    the device.

    x: square images (N, C, r, r) at the step's resolution r, one of the space's; all its networks see that. A
        subnet's loss is its
    label loss plus its soft cross-entropy against the teacher's predictions. teacher: needed where
    phase.subnets > 0. Draws depend on (seed, step) only; those of dropout on (noise_seed, step): ranks may
    share subnets, but never noise.
    """
    space, rng, resolution = supernet.space, numpy_generator(seed, "subnets", step), x.shape[-1]
    if phase.subnets == 0:
        arch = largest(space).model_copy(update={"resolution": resolution})
        return torch.stack(label_step(supernet, arch, x, y, config, noise_seed, step)[1])
    assert teacher is not None
    with torch.no_grad(), autocast(x.device):
        taught = teacher(x)
    losses = []
    for i in range(phase.subnets):
        arch, noise = phase.sample(space, rng, resolution), step * phase.subnets + i
        losses += label_step(
            supernet, arch, x, y, config, noise_seed, noise, lambda logits: soft_cross_entropy(logits, taught)
        )[1]
    return torch.stack(losses)


def read_teacher(run: Path, supernet: Supernet) -> Subnet | None:
    """The teacher of a run's later phases, if it has one yet, on the device of the supernet."""
    if not (run / TEACHER).exists():
        return None
    teacher = extract(supernet, largest(supernet.space))
    teacher.load_state_dict(load_weights(run / TEACHER))
    return teacher


def grows(before: Phase, phase: Phase, space: Space) -> bool:
    """Whether `phase` opens expansions that phase `before` did not."""
    expands = [column.field == "expand" for column in space.columns]
    return bool((phase.open(space) > before.open(space))[expands].any())


@torch.no_grad()
def sort_channels(supernet: Supernet, before: Phase) -> None:
    """Order the hidden channels of every block by importance, the L1 norm of what the next layer reads from
    each.

    Every architecture of phase `before` computes the same as it did: a channel only moves among those that
    all its architectures use, or do not use, together. Squeeze-and-excitation moves along, its inner channels
    in the same way.
    """
    space = supernet.space
    opened = dict(zip(space.columns, before.open(space), strict=True))

    def choices(field: str, position: int) -> tuple[float, ...]:
        column = space.columns[space.column_index[field, position]]
        return column.values[len(column.values) - int(opened[column]) :]

    for i, stage in enumerate(space.stages):
        for j in range(stage.depth[-1]):
            block = supernet.stages[i][j]  # type: ignore[index]
            outputs = choices("width", i + 1)
            inputs = outputs if j > 0 else choices("width", i)
            expands = choices("expand", space.slot(i, j))
            if isinstance(block, Bottleneck):
                cuts = {hidden_width(int(w), e) for w in outputs for e in expands}
                _sort_bottleneck(block, cuts)
            elif isinstance(block, Block) and block.expand is not None:
                cuts = {hidden_width(int(w), e) for w in inputs for e in expands}
                _sort_inverted(block, cuts)


def _sort_inverted(block: Block, cuts: set[int]) -> None:
    assert block.expand is not None
    writers: list[Tensor] = [
        block.expand.conv.weight,
        *_norm(block.expand.bn),
        block.depthwise.conv.weight,
        *_norm(block.depthwise.bn),
    ]
    readers: list[Tensor] = [block.project.conv.weight]
    order = _order(block.project.conv.weight, cuts)
    if block.se is not None:
        reduce, restore = block.se.reduce, block.se.restore
        assert reduce.bias is not None and restore.bias is not None
        inner = _order(restore.weight, {squeeze_width(cut) for cut in cuts})
        _permute(inner, [reduce.weight, reduce.bias], [restore.weight])
        writers += [restore.weight, restore.bias]
        readers.append(reduce.weight)
    _permute(order, writers, readers)


def _sort_bottleneck(block: Bottleneck, cuts: set[int]) -> None:
    for layer, following in ((block.conv, block.project), (block.reduce, block.conv)):
        _permute(
            _order(following.conv.weight, cuts),
            [layer.conv.weight, *_norm(layer.bn)],
            [following.conv.weight],
        )


def _norm(bn: torch.nn.Module) -> list[Tensor]:
    return [getattr(bn, name) for name in ("weight", "bias", "running_mean", "running_var")]


def _order(following: Tensor, cuts: set[int]) -> Tensor:
    """Where each input channel of `following` (O, I, k, k) comes from: most important first between one cut
    and the next."""
    importance = following.abs().sum((0, 2, 3))
    edges = sorted({0, len(importance), *cuts})
    return torch.cat([a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise(edges)])


def _permute(order: Tensor, writers: list[Tensor], readers: list[Tensor]) -> None:
    """Reorder what writes the channels (their axis 0) and what reads them (axis 1)."""
    for axis, tensors in ((0, writers), (1, readers)):
        for tensor in tensors:
            tensor.copy_(tensor.index_select(axis, order))
