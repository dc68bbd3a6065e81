"""Train one weight-sharing supernet, which holds a subnet for every budget.

BigNAS (2020, arXiv:2003.11142): sandwich rule and in-place distillation, in one stage; AttentiveNAS and
AlphaNet are choices of the step (`ofa.training.sandwich`). OFA's progressive shrinking is a list of phases
(`ofa.training.phases`). The optimiser is SGD (BigNAS: RMSProp).
"""

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from engine.blocks.elastic import ElasticConvBN
from engine.blocks.squeeze import ElasticSqueezeExcite
from engine.command.cli import main
from engine.command.start import say
from engine.compute.compiling import ABOUT_COMPILE, compile_parts
from engine.compute.distributed import Ranks
from engine.config import counted, format_count
from engine.data.dataset import Data
from engine.model import write_model
from engine.seed import torch_generator
from ofa.cost import cost_of
from ofa.initialisation import initialise
from ofa.space.arch import Arch, largest, single_arch_space, smallest
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.trained import model_of, open_source, run_flag, start_from
from ofa.training.recipe import Recipe
from ofa.training.sampling import Uniform, build_sampler
from ofa.training.trainer import Trainer

# A supernet that learns in fewer steps of larger batches gains from a smaller batch: see `advise_on_steps`.
FEW_STEPS, LARGE_BATCH, SMALL_BATCH = 2000, 64, 32
# Far fewer than the shortest recipe has: 440, of the digits.
HARDLY_ANY_STEPS = 100


class Train(Recipe):
    """Train one weight-sharing supernet on images, which holds a subnet for every budget.

    A recipe (--config) holds the settings; flags change single ones. FLOPs means multiply-accumulates (MACs).

    examples:
      python -m ofa.train                                      the embedded digits, about 2 minutes
      python -m ofa.train --config ofa/imagefolder --data.path photos --out runs/photos
      python -m ofa.train --config ofa/cifar10 --out runs/cifar10 --epochs 50 --resume
      torchrun --nproc-per-node 2 -m ofa.train --config ofa/cifar10     two GPUs, half of each batch on each
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--config",
        "--out",
        "--data.name",
        "--data.path",
        "--space",
        "--init",
        "--epochs",
        "--batch-size",
        "--device",
        "--resume",
    )

    module: ClassVar[str] = "ofa.train"
    config: str | None = Field(
        "ofa/digits", description="recipe: a YAML file, or a packaged name such as ofa/cifar10"
    )
    out: Path = Field(Path("runs/supernet"), description="run folder to write")
    space: str | None = Field(
        None, description="search space: a packaged name or a YAML file; none: that of --init, else digits"
    )
    init: Path | None = Field(
        None,
        description=(
            "start from the weights of this run, and normalise images as it does; for another number of "
            "classes the classifier is new"
        ),
    )

    compile: bool = Field(False, description=f"of one architecture (--arch): {ABOUT_COMPILE}")

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train as rank `ranks.rank` on `device`; return the exit status."""
        # Whatever can be refused without the images is refused before they are read, which may take minutes.
        config, source, weights = self, None, None
        if self.init:
            start, source = open_source(self.init, self.space)
            weights = start.weights
            # Recorded in config.yaml, from where all later stages take it.
            config = self.model_copy(update={"data": self.data.prepared_for(start.wanted)})
        space = source.space if source else load_space(self.space or "digits")
        arch = find_arch(space, self.arch) if self.arch else None
        single_arch = None
        if arch:
            # The same network, but as the only one of a space of its own, in which it is the largest.
            space = single_arch_space(space, arch)
            single_arch = largest(space)
        if config.finished_before(ranks):
            print(f"{self.out} is finished already.")
            return _next(self.out, single_arch)
        data = config.load_images(ranks, device)
        config = config.fit_batch(data, ranks)
        supernet = Supernet(space, len(data.classes), data.channels)
        draws = torch_generator("cpu", self.seed, "weights")
        initialise(supernet, self.initialisation, self.zero_gamma, draws)
        if source:
            start_from(supernet, source, arch)
        # A single architecture has nothing to draw: no tables are estimated for it.
        sampling = Uniform() if single_arch else self.sandwich.sampling
        sampler = build_sampler(sampling, space, len(data.classes), data.channels)
        run = config.start(ranks, device)
        _introduce(config, space, data, single_arch)
        if ranks.first:
            model = model_of(space, single_arch, data, self.calibration_images, weights)
            write_model(run.path / "model.json", model, "space")
        if self.compile and single_arch is not None:
            compile_parts(compiled_parts(supernet))
        elif self.compile:
            print("the supernet is not compiled: each step runs other architectures")
        trainer = Trainer(config._for_blocks(arch), run, supernet, data, single_arch, sampler, ranks)
        return trainer.run() or _next(run.path, single_arch)

    def may_grow(self) -> frozenset[str]:
        """The epochs, unless the phases have epochs of their own."""
        return frozenset() if self.phases else super().may_grow()

    def _for_blocks(self, arch: Arch | None) -> "Train":
        """This configuration for the space that is trained.

        In the space of a single architecture each block is a stage of its own: what were the last n stages
        are more stages there.
        """
        last = self.sandwich.drop_connect_stages
        if arch is None or last is None:
            return self
        sandwich = self.sandwich.model_copy(update={"drop_connect_stages": sum(arch.depth[-last:])})
        return self.model_copy(update={"sandwich": sandwich})


def compiled_parts(supernet: Supernet) -> list[nn.Module]:
    """What torch.compile compiles of a network that is trained alone: its layers with their BatchNorms.

    Not its blocks: drop-connect draws from a generator, which torch does not compile.
    """
    kinds = (ElasticConvBN, ElasticSqueezeExcite)
    return [module for module in supernet.modules() if isinstance(module, kinds)]


def _introduce(config: Train, space: Space, data: Data, single_arch: Arch | None) -> None:
    def macs(arch: Arch) -> str:
        return format_count(cost_of(space, arch, len(data.classes), data.channels)[0])

    if single_arch:
        print(f"space '{space.name}': one architecture, {macs(single_arch)} MACs")
    else:
        span = f"{macs(smallest(space))} to {macs(largest(space))}"
        print(f"space '{space.name}': {space.size():.3g} architectures, {span} MACs")
    config.introduce(data)
    if not single_arch and not config.phases:
        step = config.sandwich
        from_labels = f", and {step.label_share:.0%} from labels" if step.label_share else ""
        also = ", smallest" if step.smallest else ""
        print(
            f"a step: largest, {step.random} random ({step.sampling.name}){also}; they learn from the "
            f"largest by {step.distillation.name}{from_labels}"
        )
        if step.largest_first:
            print(f"the largest learns alone in the first {step.largest_first:.0%} of the steps")
        advice = advise_on_steps(data.steps(config.batch_size) * config.epochs, config)
        # Only where it can be followed, and was measured.
        if advice and not config.resume and data.device.type == "cpu" and (config.ranks or 1) == 1:
            print(advice)


def advise_on_steps(steps: int, config: Train) -> str:
    """What helps a supernet that would learn in few steps; empty where the steps are enough.

    Measured on 3,000 images of CIFAR-10 in 10 epochs: 32 images a step instead of 128 and half the rate took
    1.2 times the CPU time, and random subnets were 3.6 points better. A quarter of the rate gained 2.1. With
    the largest alone for 80% of the steps, tuned subnets were 3.4 points better, for 0.7 times the time.
    """
    if steps < HARDLY_ANY_STEPS:
        return f"{counted(steps, 'step')} in all: a supernet learns next to nothing in so few; raise --epochs"
    if steps >= FEW_STEPS or config.batch_size <= LARGE_BATCH:
        return ""
    rate = config.sgd.lr * (SMALL_BATCH / config.batch_size) ** 0.5
    times = config.batch_size / SMALL_BATCH
    advice = (
        f"{steps} steps are few for a supernet; --batch-size {SMALL_BATCH} --sgd.lr {rate:.2g} makes "
        f"{times:.1f} times as many, for little more time on a CPU"
    )
    if not config.sandwich.largest_first:
        advice += "; --no-sandwich.smallest --sandwich.largest-first 0.8 gives tuned subnets a better start"
    return advice


def _next(path: Path, single_arch: Arch | None) -> int:
    module = "export.onnx" if single_arch else "predictors.collect"
    say(f"next: python -m {module}{run_flag(path)}")
    return 0


if __name__ == "__main__":
    main(Train)
