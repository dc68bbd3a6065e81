"""How much memory a search on images will need, known before it starts.

One step is made on CPU with very few and small images, and the bytes that are alive at once are counted:
activations, weights, gradients, momentum. All but the weights grow with the number of images and with their
area, so two such steps tell what any batch needs. The true peak of a process is 0.8 to 1.5 times that on a
CPU (`tests/oneshot/test_memory.py`): kernels take scratch space, and an allocator keeps pieces.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from engine.compute.evaluation import BYTES_OF_CELLS, evaluation_batch
from engine.compute.peak_memory import DeviceMemory, PeakMemory
from engine.errors import UserError
from engine.seed import torch_generator
from oneshot.axes.operation_costs import OperationCosts
from oneshot.axes.penalty import CostPenalty
from oneshot.axes.progress import Progress
from oneshot.methods.method import Method
from oneshot.objectives.images import CPU_BATCH, ImageLoss, ImageObjective
from oneshot.searcher import Searcher
from oneshot.spaces.search_space import SearchSpace

FEW = 2, 4  # images of the two trial steps
DRAWS = 4  # steps of a method that draws operations, of which the largest counts
# Sides of the images of a trial, in pixels, by stem. The last cells' maps are an eighth of the side, or a
# thirty-second (chains of blocks, too), and must not be rounded.
TRIAL_SIDE = {"cifar": 16, "imagenet": 32}


class Bytes(NamedTuple):
    """What a step or an evaluation needs: an amount that is always there, and more for every image."""

    fixed: float
    per_image: float

    def of(self, images: int) -> int:
        """Bytes with so many images."""
        return round(self.fixed + images * self.per_image)


class SearchMemory(NamedTuple):
    """The memory of a search.

    Args:
        step: of a search step.
        evaluation: of the search network's measurement after each epoch.
        batch_size: images of a step.
        evaluated: images of a batch of the measurement.
    """

    step: Bytes
    evaluation: Bytes
    batch_size: int
    evaluated: int

    @property
    def needed(self) -> int:
        """Bytes at the peak."""
        return max(self.step.of(self.batch_size), self.evaluation.of(self.evaluated))

    def fitting(self, memory: int) -> int:
        """The largest batch whose step fits into so many bytes; 0 if none does."""
        return max(0, int((memory - self.step.fixed) // self.step.per_image))


def search_memory(
    method: Method, space: SearchSpace, objective: ImageObjective, evaluated: int | None = None
) -> SearchMemory:
    """Count what a search needs, in float32: lower precision needs less.

    A method that draws operations is counted with some draws. What a CUDA graph keeps to itself is not
    counted: the evaluation after an epoch then finds less free by about a step (no GPU has measured it).

    Args:
        method: as the search has it.
        space: what is searched.
        objective: network and images; a copy of its network is used.
        evaluated: images that the network is measured on after each epoch; None: all that there are.
    """
    trial = copy.copy(objective)
    trial.network = copy.deepcopy(objective.network).cpu()
    trial.loss = ImageLoss(trial.network)
    size = objective.data.size
    stem = "cifar" if space.name == "nasbench201" else getattr(trial.network, "stem_name", "imagenet")
    side = min(size, TRIAL_SIDE[stem])
    # A penalty on the cost adds a few numbers, and here there are no costs to weigh.
    penalties = tuple(penalty for penalty in method.penalties if not isinstance(penalty, CostPenalty))
    method = method.model_copy(update={"penalties": penalties})
    steps, evaluations = [], []
    for images in FEW:
        searcher = Searcher(method, space, trial, 0, method.epochs, OperationCosts())
        # In a warm-up there is no architecture step, which may need more than a step of the weights.
        searcher.state.progress = Progress(method.warmup_epochs, method.epochs)
        batch = _noise(images, objective.data.channels, side, len(objective.data.classes))
        steps.append(0)
        # Which operations were drawn decides what a step needs: the largest of some draws.
        for number in range(DRAWS if method.samples_operations else 1):
            with PeakMemory() as counted:
                searcher.step(number, batch, batch)
            steps[-1] = max(steps[-1], counted.peak)
        # Only the peak of the forward pass: what the searcher holds is in `weights` below.
        with PeakMemory() as counted, torch.no_grad():
            trial.network(batch[0], searcher.edge_weights("measure"))
        evaluations.append(counted.peak)
    weights = sum(w.nbytes for w in trial.network.parameters())
    # Momentum is made at the end of the first step and is there at the peak of all others.
    always = 2 * weights if method.sgd.momentum else weights
    larger = (size / side) ** 2
    at_once = evaluation_batch(objective.data.device, size, CPU_BATCH, BYTES_OF_CELLS)
    return SearchMemory(
        _line(steps, always, larger),
        _line(evaluations, always, larger),
        objective.batch_size,
        min(evaluated or objective.data.count("val"), at_once),
    )


def _noise(images: int, channels: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    generator = torch_generator("cpu", 0, "memory")
    x = torch.randn(images, channels, side, side, generator=generator)
    y = torch.randint(classes, (images,), generator=generator)
    return x.to(memory_format=torch.channels_last), y


def _line(peaks: list[int], always: int, larger: float) -> Bytes:
    """The line through two peaks, in images that are `larger` times those of the trial."""
    per_image = (peaks[1] - peaks[0]) / (FEW[1] - FEW[0])
    return Bytes(always + peaks[0] - FEW[0] * per_image, larger * per_image)


def say_memory(
    search: SearchMemory, memory: DeviceMemory | None, channels: int | None, size: int, partial: int
) -> None:
    """Print what a search needs, with a warning if more is needed than is free now.

    Args:
        search: what it needs.
        memory: of the device; None: unknown, and everything passes.
        channels: of the first cells; None: a chain of blocks, which has widths of its own.
        size: side of the images.
        partial: K of partial channels.

    Raises:
        UserError: it needs more than the device has altogether.
    """
    here = "" if memory is None else f", of which {_gigabytes(memory.free)} are free"
    print(f"needs about {_gigabytes(search.needed)} of memory{here}")
    if memory is None or search.needed <= memory.free:
        return
    never = search.needed > memory.total
    fitting = search.fitting(memory.total if never else memory.free)
    would = f"; {fitting} would fit" if fitting >= 2 else ""
    advice = f"lower --batch-size (now {search.batch_size}{would}) or --data.size (now {size})"
    if channels is not None:
        advice += (
            f", or --channels (now {channels}), or let fewer channels through the operations with "
            f"--method.partial (now {partial})"
        )
    about = f"This search needs about {_gigabytes(search.needed)} of memory"
    if never:
        raise UserError(f"{about}, more than the {_gigabytes(memory.total)} that there are; {advice}.")
    free = _gigabytes(memory.free)
    print(f"warning: {about}, more than the {free} that are free now; end other programs, or {advice}.")


def _gigabytes(count: float) -> str:
    # Two digits: the estimate is no better, and 20 GB are not 2e+01.
    return f"{float(f'{count / 1e9:.2g}'):g} GB"
