"""What a finished run gives to export: its networks by name, and the images to compare their files on.

model.json says which kind a run is: one with a genotype was made by `oneshot.retrain`, any other by
`ofa.train`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.checkpoint import weights_digest
from engine.data.augment import resize
from engine.data.dataset import Batch, Data, Interpolation, Split
from engine.errors import UserError
from engine.run import Run, digest, read_json
from export.bake import CenterCrop
from ofa.space.arch import Arch
from ofa.space.codes import decode, encode
from ofa.trained import TrainedSupernet
from ofa.tuned import TunedSubnet, find_subnet, find_tuned, name_of, tuned_or_taken
from oneshot.trained import TrainedNetwork
from predictors.accuracy.pairs import read_selected

BICUBIC = (
    "bicubic, a = -0.75, half-pixel centres, no antialiasing, not clipped (torch.nn.functional.interpolate)"
)


class SourceNetwork(NamedTuple):
    """One network of a run, ready to be exported.

    Args:
        module: in eval mode, on CPU, in float32; (N, channels, size, size) to logits (N, classes).
        size: side of its square input in pixels.
        architecture: what it is, as data.
        macs, params: multiply-accumulates of one image; parameters before BatchNorm is folded.
        predicted: the accuracy in [0, 1] that predictors.select expected; None without a prediction.
    """

    module: nn.Module
    size: int
    architecture: dict[str, Any]
    macs: int
    params: int
    predicted: float | None = None


class NamedNetwork(NamedTuple):
    """A network of the run by name.

    Args:
        name: such as its budget.
        build: makes it and calibrates its BatchNorm, which takes a while.
        note: how it was tuned; empty if it was not.
    """

    name: str
    build: Callable[[], SourceNetwork]
    note: str = ""


# From the values of the flags --selected and --arch to the networks that they mean.
FindNetworks = Callable[[str | None, str | None], list[NamedNetwork]]


class ExportSource(NamedTuple):
    """A finished run as export sees it.

    Args:
        run: its folder.
        data: what it was trained on.
        seed: of the run.
        config_sha256: of its config.yaml, in hexadecimal.
        weights_sha256: of its weights.safetensors, in hexadecimal.
        preprocessing: the data set's own steps from an image file to pixels.
        weights: whose weights the training started from, as data; None: it started from scratch.
        networks: finds the networks that the user means.
        searchable: whether it is a trained supernet, in which predictors.select can search.
    """

    run: Path
    data: Data
    seed: int
    config_sha256: str
    weights_sha256: str
    preprocessing: dict[str, Any]
    weights: dict[str, Any] | None
    networks: FindNetworks
    searchable: bool

    def images(self, split: Split, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Normalised images (N, C, size, size) on CPU and their classes (N,), always in the same order."""
        for x, y in self.data.evaluation_batches(split, limit):
            yield resize(x.cpu(), size).contiguous(), y.cpu()

    def center_crop(self) -> CenterCrop:
        """The data set's own resize and crop."""
        how = self.preprocessing
        if "center_crop" not in how:
            return CenterCrop(how["image_size"])
        is_bilinear = how["resize_interpolation"].startswith("bilinear")
        interpolation: Interpolation = "bilinear" if is_bilinear else "bicubic"
        return CenterCrop(how["center_crop"], how["resize_shorter_side"], interpolation)

    def preparation(self, size: int) -> dict[str, Any]:
        """How a device turns an image file into the network's input of `size` pixels, step by step."""
        return self.preprocessing | {
            "resize": [size, size],
            "interpolation": BICUBIC,
            "scale": "divide by 255",
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "channels": "RGB" if self.data.channels == 3 else "gray",
        }


def open_export_source(
    run: Path, device: torch.device, images: Path | None = None, untuned: bool = False
) -> ExportSource:
    """Open a finished run.

    Args:
        run: its folder.
        device: where BatchNorm is calibrated.
        images: where its data is now, if it was moved.
        untuned: whether to take the supernet's weights of subnets that ofa.tune tuned, too.

    Raises:
        UserError: the run is missing, unfinished or damaged, or its data is.
    """
    Run.open(run)  # says what is wrong with a folder that is no finished run
    # Both kinds of runs have a model.json; only a retrained network has a genotype in it.
    retrained = "genotype" in read_json(run / "model.json")
    trained: TrainedSupernet | TrainedNetwork
    searchable = False
    if retrained:
        trained = TrainedNetwork(run, device, images)
        networks = _genotype(run, trained)
    else:
        trained = TrainedSupernet(run, device, images)
        is_supernet = trained.model.arch is None
        networks = _subnets(run, trained, untuned) if is_supernet else _single_arch(run, trained)
        searchable = is_supernet and not trained.model.pretrained_only
    weights = trained.model.weights
    return ExportSource(
        run=run,
        data=trained.data,
        seed=int(Run(run).config.get("seed", 0)),
        config_sha256=digest(run / "config.yaml"),
        weights_sha256=weights_digest(run),
        preprocessing=dict(trained.model.preprocessing),
        weights=weights.model_dump(mode="json") if weights else None,
        networks=networks,
        searchable=searchable,
    )


def _subnets(run: Path, trained: TrainedSupernet, untuned: bool) -> FindNetworks:
    """The networks of a supernet: those that selection wrote, or one architecture; tuned where they are."""

    def subnet(name: str, arch: Arch, predicted: float | None = None) -> NamedNetwork:
        tuned = None if untuned else find_tuned(run, name, arch)
        return _subnet(trained, name, arch, predicted, tuned)

    def networks(selected: str | None, arch: str | None) -> list[NamedNetwork]:
        if arch is not None and selected is not None:
            raise UserError("--arch and --selected both say which subnet; give one of them.")
        if arch is not None:
            return [subnet(name_of(arch), find_subnet(run, trained.space, arch))]
        known = dict(read_selected(run))
        if selected is not None and selected not in known:
            raise UserError(f"Run '{run}' has no selected subnet '{selected}'; it has {', '.join(known)}.")
        found = []
        for name, facts in known.items():
            if selected in (None, name):
                # Encoding checks that the architecture is one of this space.
                checked = decode(trained.space, encode(trained.space, facts.arch))
                found.append(subnet(name, checked, facts.predicted_accuracy))
        return found

    return networks


def _subnet(
    trained: TrainedSupernet,
    name: str,
    arch: Arch,
    predicted: float | None = None,
    tuned: TunedSubnet | None = None,
) -> NamedNetwork:
    # Built late: a command may name many networks, and has room for one of them at a time.
    def build() -> SourceNetwork:
        architecture: dict[str, Any] = {
            "kind": "ofa",
            "space": trained.space.name,
            "arch": arch.model_dump(mode="json"),
        }
        facts = tuned.facts if tuned else trained.model.tuned
        if facts is not None:
            stated = {"epochs", "teacher", "qat", "supernet_sha256"}
            architecture["tuned"] = facts.model_dump(mode="json", include=stated)
            architecture["tuned"]["weights_sha256"] = weights_digest(
                tuned.path if tuned else trained.run.path
            )
        macs, params = trained.cost(arch)
        module = _for_export(tuned_or_taken(trained, arch, tuned))
        # Selection predicted the subnet as the supernet has it, which a tuned one no longer is.
        expected = None if tuned else predicted
        return SourceNetwork(module, arch.resolution, architecture, macs, params, expected)

    return NamedNetwork(name, build, str(tuned or ""))


def _single_arch(run: Path, trained: TrainedSupernet) -> FindNetworks:
    """The network of a run that trained one architecture alone."""
    arch = trained.model.arch
    assert arch is not None

    def networks(selected: str | None, named: str | None) -> list[NamedNetwork]:
        _refuse_flags(run, "architecture trained alone", selected, named)
        return [_subnet(trained, "alone", arch)]

    return networks


def _genotype(run: Path, trained: TrainedNetwork) -> FindNetworks:
    """The network of a run that retrained a genotype."""

    def networks(selected: str | None, arch: str | None) -> list[NamedNetwork]:
        _refuse_flags(run, "retrained genotype", selected, arch)

        def build() -> SourceNetwork:
            architecture = {"kind": "oneshot", "genotype": trained.model.genotype.model_dump(mode="json")}
            macs, params = trained.cost()
            module = _for_export(trained.network)
            return SourceNetwork(module, trained.data.size, architecture, macs, params)

        return [NamedNetwork("genotype", build)]

    return networks


def _refuse_flags(run: Path, what: str, selected: str | None, arch: str | None) -> None:
    """Raise UserError if a flag chooses among the networks of a run that has only one."""
    if selected is None and arch is None:
        return
    flag = "--selected" if selected is not None else "--arch"
    raise UserError(f"Run '{run}' is one {what}, so there is nothing to choose; leave out {flag}.")


def _for_export(module: nn.Module) -> nn.Module:
    """The module on CPU, contiguous, in eval mode."""
    # Contiguous weights, since training may have kept them in channels_last.
    return module.cpu().to(memory_format=torch.contiguous_format).eval()
