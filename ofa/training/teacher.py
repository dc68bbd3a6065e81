"""Who teaches a subnet while it is tuned: the run's largest subnet, another run, or a module by its name.

A teacher is a function from the run's normalised images to logits. Its soft predictions are those of
"Distilling the Knowledge in a Neural Network" (2015, arXiv:1503.02531), at temperature 1.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.compute.precision import autocast
from engine.data.augment import resize
from engine.data.dataset import Data
from engine.errors import UserError
from engine.run import Run
from ofa.calibration import CALIBRATION_BATCH, calibrate
from ofa.space.arch import largest
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.trained import SupernetModel, load_network
from ofa.weights.reading import read_checkpoint

# From images (N, C, side, side), normalised as the run's are, to logits (N, K) without a gradient.
Teacher = Callable[[Tensor], Tensor]


class Preparation(NamedTuple):
    """How the images of a network are prepared: side in pixels, and mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


LONGEST_REASON = 300  # characters of torch's list of tensors that do not fit

# torchvision trains all its classifiers with ImageNet's mean and deviation; most of them take this size.
TORCHVISION = Preparation(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def largest_teacher(model: SupernetModel, supernet: Supernet, data: Data) -> Teacher:
    """The largest subnet of a supernet, or the one network that a run trained; calibrated, in eval mode.

    Args:
        model: of the run.
        supernet: its weights.
        data: the images; BatchNorm is calibrated on them as that run normalises images.
    """
    arch = model.arch or largest(model.space)
    subnet = extract(supernet.to(data.device), arch)
    prepared = Preparation(arch.resolution, model.mean, model.std)
    batches = data.batches("train", CALIBRATION_BATCH, model.calibration_images)
    return _prepared(
        calibrate(subnet, ((_renormalise(x, data, prepared), y) for x, y in batches)), prepared, data
    )


def find_teacher(name: str, weights: Path | None, size: int | None, data: Data) -> Teacher:
    """The teacher that `name` stands for.

    Args:
        name: the folder of a finished run of ofa.train, or the name of a timm or torchvision module.
        weights: the file with the weights of a module by name.
        size: side of the images that a module by name takes; None: what its library notes.
        data: the images.

    Raises:
        UserError: there is no such run or module, or its classes or its weights do not fit.
    """
    if not Path(name).is_dir():
        return _module_teacher(name, weights, size, data)
    if weights is not None or size is not None:
        flag = "--teacher-weights" if weights is not None else "--teacher-size"
        raise UserError(
            f"Teacher '{name}' is a run, which has weights and a size of its own; leave out {flag}."
        )
    Run.open(Path(name), "--teacher")
    model, supernet = load_network(Path(name))
    if model.pretrained_only:
        raise UserError(
            f"Teacher '{name}' has not learned these classes yet; train it first, or name another."
        )
    if tuple(model.classes) != tuple(data.classes) or model.channels != data.channels:
        raise UserError(
            f"Teacher '{name}' is of {len(model.classes)} classes and {model.channels} channels that are not "
            f"those of the run ({len(data.classes)} and {data.channels}); name a run of the same images."
        )
    return largest_teacher(model, supernet, data)


def _module_teacher(name: str, weights: Path | None, size: int | None, data: Data) -> Teacher:
    """A module of timm or torchvision with weights from a file."""
    if weights is None:
        raise UserError(
            f"Teacher '{name}' is neither selected, largest, none nor a run folder; give one of these, or a "
            "timm or torchvision module by its name and a file of its weights with --teacher-weights."
        )
    module, prepared = _build_module(name, len(data.classes))
    try:
        module.load_state_dict(read_checkpoint(weights))
    except RuntimeError as error:
        # The first line only says which class it is; the second names tensors, all that are missing.
        reason = " ".join(str(error).split("\n")[1:2]).strip()
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
        raise UserError(
            f"Weights '{weights}' do not fit '{name}' with {len(data.classes)} classes: {reason} "
            "Give the weights of a network that was trained on the classes of this run."
        ) from None
    if size is not None:
        prepared = prepared._replace(size=size)
    teacher = _prepared(module.to(data.device).eval(), prepared, data)
    # Tried now: some networks take one size only, and what they raise otherwise is their own affair.
    try:
        teacher(torch.zeros(1, data.channels, prepared.size, prepared.size, device=data.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"Teacher '{name}' cannot take images of {prepared.size} pixels with {data.channels} channels "
            f"({str(error)[:LONGEST_REASON]}); give another --teacher-size."
        ) from None
    return teacher


def _build_module(name: str, classes: int) -> tuple[nn.Module, Preparation]:
    """The module, with random weights, and how its images are prepared: timm's if timm knows the name.

    Raises:
        UserError: neither library knows it.
    """
    # Imported here: it takes longer than the rest of ofa together, and other teachers do not need it.
    import torchvision

    with torch.random.fork_rng(devices=[]):  # its first weights come from the global generator
        has_timm = find_spec("timm") is not None
        if has_timm:
            import timm

            if timm.is_model(name):
                module = timm.create_model(name, num_classes=classes)
                noted: Any = module.pretrained_cfg
                return module, Preparation(noted["input_size"][-1], tuple(noted["mean"]), tuple(noted["std"]))
        if name in torchvision.models.list_models(module=torchvision.models):
            return torchvision.models.get_model(name, weights=None, num_classes=classes), TORCHVISION
    missing = "" if has_timm else " (timm is not installed)"
    raise UserError(
        f"There is no run folder, timm module or torchvision module '{name}'{missing}; give one of these "
        "with --teacher."
    )


def _prepared(network: nn.Module, prepared: Preparation, data: Data) -> Teacher:
    """The teacher that prepares the run's images as `network` takes them."""

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        with autocast(x.device):
            return network(resize(_renormalise(x, data, prepared), prepared.size))

    return logits


def _renormalise(x_NCHW: Tensor, data: Data, prepared: Preparation) -> Tensor:
    """Images that `data` normalised, as another network's mean and deviation have them.

    Gray images become three equal channels for a network of three.
    """
    if (tuple(data.mean), tuple(data.std)) == (prepared.mean, prepared.std):
        return x_NCHW
    mean, std = (torch.tensor(v, device=x_NCHW.device)[:, None, None] for v in (prepared.mean, prepared.std))
    own_mean, own_std = (torch.tensor(v, device=x_NCHW.device)[:, None, None] for v in (data.mean, data.std))
    pixels = (x_NCHW * own_std + own_mean).expand(-1, len(prepared.mean), -1, -1)
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
