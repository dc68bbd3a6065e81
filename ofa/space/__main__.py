"""Print what a search space holds: choices, size, extremes, published subnets, MACs that a training draws."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.progress import progress
from engine.command.table import plain_console
from engine.config import format_count
from engine.errors import UserError
from engine.runs.writing import atomic
from engine.seed import numpy_generator
from ofa.cost import cost_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.published import find_arch, published
from ofa.space.space import Space, load_space
from ofa.training.sampling import Attentive, BatchLoss, build_sampler
from ofa.training.sandwich import Sandwich

BINS, BAR = 20, 50  # lines of the histogram, and letters in its longest bar
PICTURES = (".png", ".pdf", ".svg")


class Describe(Command, extra="ignore"):  # it takes a recipe of ofa.train, which has more in it
    """Print a search space: its choices, its subnets, and MACs as a training draws them.

    FLOPs means multiply-accumulates (MACs) of one image. Flags and recipes of the sampling are those of
    ofa.train.

    examples:
      python -m ofa.space attentive_nas
      python -m ofa.space attentive_nas --sandwich.sampling.name macs_prior --picture prior.png
      python -m ofa.space attentive_nas --arch attentive_nas_a1
    """

    space: CliPositionalArg[str] = Field("digits", description="a packaged name or a YAML file")
    arch: str | None = Field(
        None,
        description=(
            "print only this architecture, as JSON with its cost: smallest, largest, a published name, a file"
        ),
    )
    sandwich: Sandwich = Field(Sandwich(), description="the training step, of which the sampling is shown")
    draws: int = Field(2000, ge=1, description="random subnets drawn for the histogram")
    classes: int = Field(1000, ge=1, description="outputs of the classifier")
    channels: int = Field(3, ge=1, description="input channels")
    picture: Path | None = Field(None, description="write the histogram to this file too: .png, .pdf or .svg")
    seed: int = Field(0, ge=0, description="seed of the random draws")

    def execute(self) -> int:
        """Print everything; write the picture if asked."""
        space, console = load_space(self.space), plain_console()
        # Before the draws, which take time.
        if self.picture and self.picture.suffix not in PICTURES:
            raise UserError(f"Picture '{self.picture}' must end in {', '.join(PICTURES)}.")
        if self.arch:
            arch = find_arch(space, self.arch)
            macs, params = cost_of(space, arch, self.classes, self.channels)
            print(json.dumps({"arch": arch.model_dump(mode="json"), "macs": macs, "params": params}))
            return 0
        source = f" ({space.source})" if space.source else ""
        console.print(f"space '{space.name}': {space.size():.4g} architectures{source}")
        blocks = " and ".join(dict.fromkeys(stage.block for stage in space.stages))
        console.print(
            f"resolutions {_span(space.resolution)}; {blocks} blocks, kernel and expansion chosen per "
            f"{space.granularity}"
        )
        console.print(_layers(space))
        console.print(self._subnets(space))
        self._histogram(space, console)
        return 0

    def _histogram(self, space: Space, console: Console) -> None:
        """Bars of the MACs that a training draws, and the picture of them."""
        macs_N = self._draw(space)
        median, sampling = format_count(float(np.median(macs_N))), self.sandwich.sampling.name
        console.print(f"MACs of {self.draws} subnets drawn by '{sampling}', median {median}")
        counts, edges = np.histogram(macs_N, BINS)
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            bar = "#" * round(BAR * count / counts.max())
            console.print(f"{format_count(float(low)):>6} to {format_count(float(high)):>6} {count:6} {bar}")
        if self.picture:
            _draw_picture(self.picture, macs_N, f"{space.name}: {self.draws} subnets drawn by {sampling}")
            console.print(f"written to {self.picture}")

    def _subnets(self, space: Space) -> Table:
        """The extremes and the published subnets with their cost."""
        title = f"{self.classes} classes, {self.channels} channels"
        table = Table("subnet", "MACs", "params", title=title, title_justify="left")
        known = published(space)
        if known:
            table.add_column("ImageNet top-1, published")
        rows = {"smallest": smallest(space), "largest": largest(space)}
        rows |= {name: subnet.arch for name, subnet in known.items()}
        for name, arch in rows.items():
            macs, params = cost_of(space, arch, self.classes, self.channels)
            top1 = f"{known[name].imagenet_top1}%" if name in known else ""
            cells = [name, format_count(macs, 4), format_count(params, 4)]
            table.add_row(*cells, *([top1] if known else []))
        return table

    def _draw(self, space: Space) -> NDArray[np.int64]:
        """MACs (draws,) of subnets as the sampling draws them."""
        sampling = self.sandwich.sampling
        if isinstance(sampling, Attentive) and isinstance(sampling.judge, BatchLoss):
            print(
                "candidates are shown as they are drawn: which of them a step trains is for its batch to say"
            )
        # The sampler that a training uses, with its tables, so that the picture shows what a training draws.
        sampler = build_sampler(sampling, space, self.classes, self.channels)
        rng = numpy_generator(self.seed, "describe")
        macs = []
        with progress("draw subnets", self.draws) as advance:
            # One at a time: the coin of an attentive sampling is tossed once for each call.
            for _ in range(self.draws):
                (arch,) = sampler.draw(rng, 1, _no_judge)
                macs.append(cost_of(space, arch, self.classes, self.channels)[0])
                advance("")
        return np.array(macs)


def _no_judge(archs: list[Arch]) -> list[float]:
    """The same loss for all candidates: there is no batch here on which one could be better."""
    return [0.0] * len(archs)


def _layers(space: Space) -> Table:
    """A row of choices for the stem, each stage and the head."""
    table = Table("layer", "width", "depth", "kernel", "expand", "stride", "SE", "act")
    stem = space.stem
    depth = f"{2 + stem.deep.plain} + {_span(stem.deep.residual)}" if stem.deep else ""
    table.add_row("stem", _span(stem.width), depth, str(stem.kernel), "", str(stem.stride), "", stem.act)
    for i, stage in enumerate(space.stages, start=1):
        choices = [_span(values) for values in (stage.width, stage.depth, stage.kernel, stage.expand)]
        se = f"{stage.se.ratio:g} of {stage.se.of}" if stage.se else ""
        table.add_row(f"stage {i}", *choices, str(stage.stride), se, stage.act)
    if space.head:
        width, expand = _span(space.head.width), f"{space.head.expand:g}" if space.head.expand else ""
        table.add_row("head", width, "", "", expand, "", "", space.head.act)
    return table


def _list(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _span(values: tuple[float, ...]) -> str:
    """All choices if they are at most 8; else the first, the last and their number."""
    return _list(values) if len(values) <= 8 else f"{values[0]:g} to {values[-1]:g} ({len(values)})"


def _draw_picture(path: Path, macs_N: NDArray[np.int64], title: str) -> None:
    # Imported here: only who asks for a picture waits for it, or needs it.
    import matplotlib

    matplotlib.use("agg")  # draws into files and needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.hist(macs_N / 1e6, bins=4 * BINS, color="tab:blue")
    axes.set(xlabel="million multiply-accumulates (MACs)", ylabel="subnets", title=title)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(Describe)
