"""What a finished run, of whatever kind, gives to export: its networks one by one, and the images they are
proved on.

A run's model.json says which kind it is: one with a genotype was made by `oneshot.retrain`, any other by
`ofa.train`.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.data.augment import resize
from engine.data.dataset import Batch, Data, Split
from engine.errors import UserError
from engine.run import Run, read_json
from ofa.calibration import EVALUATION_BATCH
from ofa.space.arch import Arch
from ofa.space.codes import decode, encode
from ofa.space.published import find_arch
from ofa.trained import TrainedSupernet
from oneshot.trained import TrainedNetwork
from predictors.accuracy.pairs import read_selected

BICUBIC = (
    "bicubic, a = -0.75, half-pixel centres, no antialiasing, not clipped (torch.nn.functional.interpolate)"
)


class Network(NamedTuple):
    """One network ready to be exported.

    Args:
        module: in eval mode, on CPU, in float32; (N, channels, size, size) to logits (N, classes).
        size: side of its square input in pixels.
        architecture: what it is, as data.
        macs, params: multiply-accumulates of one image; parameters before BatchNorm is folded.
        predicted: the accuracy in [0, 1] that selection expected, if it did.
    """

    module: nn.Module
    size: int
    architecture: dict[str, Any]
    macs: int
    params: int
    predicted: float | None = None


class Choice(NamedTuple):
    """A network of the run by name; `build` makes it, which takes a while: BatchNorm is calibrated then."""

    name: str
    build: Callable[[], Network]


Choices = Callable[[str | None, str | None], list[Choice]]  # of (--selected, --arch)


class Source(NamedTuple):
    """A finished run as export sees it. `choices(selected, arch)`: the networks that the user means;
    searchable: a supernet."""

    run: Path
    data: Data
    seed: int
    config_sha256: str
    preprocessing: dict[str, Any]
    choices: Choices
    searchable: bool

    def images(self, split: Split, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Normalised images (N, C, size, size) on CPU and their classes, always the same in the same
        order."""
        for x, y in self.data.batches(split, EVALUATION_BATCH, limit):
            yield resize(x.cpu(), size).contiguous(), y.cpu()

    def preparation(self, size: int) -> dict[str, Any]:
        """How a device turns an image file into the network's input, step by step."""
        return self.preprocessing | {
            "resize": [size, size],
            "interpolation": BICUBIC,
            "scale": "divide by 255",
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "channels": "RGB" if self.data.channels == 3 else "gray",
        }


def open_source(run: Path, device: torch.device, images: Path | None = None) -> Source:
    """The finished run in folder `run`. images: where its data is now, if it moved.

    Raises:
        UserError: it is missing, unfinished or damaged, or its data is.
    """
    Run.open(run)
    retrained = "genotype" in read_json(run / "model.json")
    trained, choices, searchable = (_oneshot if retrained else _ofa)(run, device, images)
    config_sha256 = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    seed = int(Run(run).config.get("seed", 0))
    return Source(
        run, trained.data, seed, config_sha256, dict(trained.model.preprocessing), choices, searchable
    )


def _ofa(run: Path, device: torch.device, images: Path | None) -> tuple[TrainedSupernet, Choices, bool]:
    trained = TrainedSupernet(run, device, images)

    def choice(name: str, arch: Arch, predicted: float | None = None) -> Choice:
        def build() -> Network:
            architecture = {"kind": "ofa", "space": trained.space.name, "arch": arch.model_dump(mode="json")}
            return Network(
                _plain(trained.subnet(arch)), arch.resolution, architecture, *trained.cost(arch), predicted
            )

        return Choice(name, build)

    def choices(selected: str | None, arch: str | None) -> list[Choice]:
        if arch is not None and selected is not None:
            raise UserError("--arch and --selected both say which subnet; give one of them.")
        if trained.model.arch is not None:
            if arch is not None or selected is not None:
                flag = "--selected" if selected is not None else "--arch"
                raise UserError(
                    f"Run '{run}' is one architecture trained alone, so there is nothing to choose; leave "
                    f"out {flag}."
                )
            return [choice("alone", trained.model.arch)]
        if arch is not None:
            name = "subnet" if arch.lstrip().startswith("{") else Path(arch).stem
            return [choice(name, find_arch(trained.space, arch))]
        chosen = read_selected(run)
        if selected is not None and selected not in dict(chosen):
            raise UserError(
                f"Run '{run}' has no selected subnet '{selected}'; it has {', '.join(dict(chosen))}."
            )
        return [
            choice(name, decode(trained.space, encode(trained.space, facts.arch)), facts.predicted_accuracy)
            for name, facts in chosen
            if selected in (None, name)
        ]

    return trained, choices, trained.model.arch is None


def _oneshot(run: Path, device: torch.device, images: Path | None) -> tuple[TrainedNetwork, Choices, bool]:
    trained = TrainedNetwork(run, device, images)

    def choices(selected: str | None, arch: str | None) -> list[Choice]:
        if selected is not None or arch is not None:
            flag = "--selected" if selected is not None else "--arch"
            raise UserError(
                f"Run '{run}' is one retrained genotype, so there is nothing to choose; leave out {flag}."
            )

        def build() -> Network:
            architecture = {"kind": "oneshot", "genotype": trained.model.genotype.model_dump(mode="json")}
            return Network(_plain(trained.network), trained.data.size, architecture, *trained.cost())

        return [Choice("genotype", build)]

    return trained, choices, False


def _plain(module: nn.Module) -> nn.Module:
    """On CPU, contiguous, in eval mode."""
    return module.cpu().to(memory_format=torch.contiguous_format).eval()
