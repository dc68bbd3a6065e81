"""Progressive shrinking (OFA, 2020, arXiv:1908.09791): the largest network first, then smaller ones.

Kernels, depths and widths become elastic one after the other. A phase says how many of the largest choices
of each kind are open, and how many subnets with open choices a step trains. Later phases only add choices,
so that all subnets of a phase go on being trained. From the second phase on the teacher is the largest
network as it was at the end of the first phase (in train mode, without dropout). Before expansions become
elastic, channels are sorted, so that narrower subnets keep the most important ones. Each phase starts with a
new optimiser, as in the reference code.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.checkpoint import load_weights
from engine.compute.gradients import Passes
from engine.compute.precision import autocast
from engine.config import Config
from engine.seed import numpy_generator
from ofa.space.arch import Arch, largest
from ofa.space.codes import Codes, canonical, decode
from ofa.space.space import Space
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet
from ofa.training.losses import soft_cross_entropy
from ofa.training.sandwich import Sandwich, Seeds, label_step

TEACHER = "teacher.safetensors"
MOST_CHOICES = 255  # of a column, since a code is one byte


class Phase(Config):
    """One phase: how long it trains, and which choices it opens.

    `kernel`, `depth`, `expand` and `width` count the largest choices that are open in every stage; none: all.
    A deep stem's middle width goes with `width` and its residual convolutions with `depth`.
    """

    name: str = Field(description="name of the phase in messages")
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, description="learning rate at its highest")
    warmup_epochs: float = Field(
        0, ge=0, description="linear warm-up from warmup_start, the first of the phase's epochs"
    )
    warmup_start: float = Field(0.0, ge=0, lt=1, description="where the warm-up begins, as a share of lr")
    subnets: int = Field(
        1, ge=0, description="random subnets a step; 0: the largest learns from the labels alone"
    )
    kernel: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    expand: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)

    def open(self, space: Space) -> Codes:
        """How many of the largest choices of each column are open, (F,). All resolutions are, always."""
        limits = []
        for column in space.columns:
            field = column.field
            # A deep stem has two columns, whose limits are those of the stages.
            if field == "stem":
                field = "width" if column.position == 0 else "depth"
            limit = None if field == "resolution" else getattr(self, field)
            limits.append(limit or MOST_CHOICES)
        # A limit above the number of choices opens all of them, so one recipe fits every space.
        return np.minimum(limits, space.cardinalities).astype(np.uint8)

    def sample(self, space: Space, rng: np.random.Generator, resolution: int | None = None) -> Arch:
        """Draw an architecture of this phase, every open choice uniform.

        Args:
            space: of the supernet.
            rng: draws.
            resolution: of the architecture; None: it is drawn, too.
        """
        # Choices count from the largest down: code n is the largest, n - 1 the next one.
        codes = space.cardinalities.astype(np.uint8) - rng.integers(0, self.open(space), dtype=np.uint8)
        arch = decode(space, canonical(space, codes[None])[0])
        return arch if resolution is None else arch.model_copy(update={"resolution": resolution})

    def smallest(self, space: Space) -> Arch:
        """The architecture of this phase with its first open choice everywhere."""
        codes = (space.cardinalities - self.open(space) + 1).astype(np.uint8)
        return decode(space, canonical(space, codes[None])[0])


# A phase that opens the largest network only: what `sort_channels` must keep for a network trained alone.
LARGEST = Phase(name="largest", epochs=1, lr=1.0, subnets=0, kernel=1, depth=1, expand=1, width=1)


class PhasePosition(NamedTuple):
    """Where a step is: the number of its phase, and the steps at which that phase begins and ends."""

    phase: int
    start: int
    end: int


def phase_position(phases: tuple[Phase, ...], steps: int, step: int) -> PhasePosition:
    """Where a step is in the phases.

    Args:
        phases: all phases of the run.
        steps: steps in an epoch.
        step: the step, from 0; the step after the last one counts as one of the last phase.
    """
    ends = list(accumulate(phase.epochs * steps for phase in phases))
    number = bisect_right(ends[:-1], step)  # without the last end, for the step after the last one
    return PhasePosition(number, ends[number] - phases[number].epochs * steps, ends[number])


def drawn_resolution(space: Space, seed: int, step: int) -> int:
    """The resolution at which a step sees its batch; the same on every rank."""
    return int(numpy_generator(seed, "resolution", step).choice(space.resolution))


def shrinking_step(
    supernet: Supernet,
    teacher: Subnet | None,
    x: Tensor,
    y: Tensor,
    step: int,
    phase: Phase,
    config: Sandwich,
    seeds: Seeds,
    passes: Passes | None = None,
) -> Tensor:
    """Add the gradients of one step to the supernet's.

    A subnet's loss is its label loss plus its soft cross-entropy against the teacher's predictions.

    Args:
        supernet: in train mode.
        teacher: the largest network as it was at the end of the first phase; None is possible only in a phase
            that trains no random subnets.
        x: square images (N, C, r, r) at the step's resolution r, one of the space's, for all networks.
        y: classes (N,) or class probabilities (N, K).
        step: the number of this step; the same seeds and number draw the same subnets and noise.
        phase: which choices are open.
        config: regularisation and label smoothing.
        seeds: of the subnets and of the noise.
        passes: runs the backward passes, one a network; None: gradients are added, and nothing else.

    Returns:
        The losses (max(1, subnets),), detached, on the device.
    """
    passes = passes or Passes()
    space, rng, resolution = supernet.space, numpy_generator(seeds.subnets, "subnets", step), x.shape[-1]
    if phase.subnets == 0:
        arch = largest(space).model_copy(update={"resolution": resolution})
        _, loss = label_step(supernet, arch, x, y, config, (seeds.noise, step), backward=passes.last_backward)
        return loss[None]
    assert teacher is not None
    # Once for all subnets of the step: they see the same images at the same resolution.
    with torch.no_grad(), autocast(x.device):
        taught = teacher(x)

    def distillation(logits: Tensor) -> Tensor:
        return soft_cross_entropy(logits, taught)

    losses = []
    for i in range(phase.subnets):
        arch = phase.sample(space, rng, resolution)
        # Every subnet has noise of its own: the number counts subnets here, not steps.
        noise = (seeds.noise, step * phase.subnets + i)
        backward = passes.last_backward if i + 1 == phase.subnets else passes.backward
        losses.append(label_step(supernet, arch, x, y, config, noise, distillation, backward)[1])
    return torch.stack(losses)


def read_teacher(run: Path, supernet: Supernet) -> Subnet | None:
    """The teacher of a run's later phases, on the device of the supernet; None if the run has none yet.

    Args:
        run: the run folder.
        supernet: of the run; it decides the shape of the teacher.
    """
    if not (run / TEACHER).exists():
        return None
    # Cut out for its shapes only: its weights are replaced.
    teacher = extract(supernet, largest(supernet.space))
    teacher.load_state_dict(load_weights(run / TEACHER))
    return teacher


def grows(before: Phase, phase: Phase, space: Space) -> bool:
    """Whether `phase` opens expansions that phase `before` did not open."""
    expands = [column.field == "expand" for column in space.columns]
    return bool((phase.open(space) > before.open(space))[expands].any())


@torch.no_grad()
def sort_channels(supernet: Supernet, before: Phase) -> None:
    """Order the hidden channels of every block by importance, so that narrower subnets keep the best.

    Every architecture of phase `before` computes the same as it did. Each kind of block decides which of its
    channels move (`ElasticBlock.sort_channels`).
    """
    space = supernet.space
    opened = dict(zip(space.columns, before.open(space), strict=True))

    def choices(field: str, position: int) -> tuple[float, ...]:
        """The values that phase `before` opened: the largest ones."""
        column = space.columns[space.column_index[field, position]]
        return column.values[len(column.values) - int(opened[column]) :]

    # All blocks, also those that no architecture of phase `before` runs: they may be open later.
    for stage, depth in enumerate(stage.depth[-1] for stage in space.stages):
        # Column 0 of the widths is the stem's, so a stage finds its input width under its own number.
        outputs = [int(width) for width in choices("width", stage + 1)]
        first_inputs = [int(width) for width in choices("width", stage)]
        for number in range(depth):
            inputs = outputs if number > 0 else first_inputs
            expands = choices("expand", space.slot(stage, number))
            supernet.block(stage, number).sort_channels(inputs, outputs, expands)
