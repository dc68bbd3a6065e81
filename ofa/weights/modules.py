"""A supernet from a live module of timm, torchvision or the user, proved by what both compute."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.errors import UserError
from ofa.space.arch import Arch
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.weights.networks import Network, Source, find_networks, networks_of, packaged_networks
from ofa.weights.order import load_in_order
from ofa.weights.recognition import Recognised, fitting_networks, recognise

SIDE = 64  # of the images that are compared: even, so that both kinds of padding differ at every stride
TOLERANCE = 1e-4  # of logits, relative to the largest: ten times what rounding makes of the deepest networks


class FromModule(NamedTuple):
    """What `from_module` made of a module.

    Args:
        supernet: on CPU, with the weights of the module.
        arch: the module as one of its architectures.
        network: which network it is; its `mean` and `std` are those that images need.
    """

    supernet: Supernet
    arch: Arch
    network: Network


def from_module(module: nn.Module, classes: int | None = None, network: str | None = None) -> FromModule:
    """Make a supernet of a trained convolutional network; that network is one of its architectures.

    The network is recognised by its tensors. Of several with the same tensors, the one that computes the same
    logits as the module is taken.

    Args:
        module: of timm, torchvision or one's own, on any device; it is not changed.
        classes: outputs of a new classifier; None: the module's classifier is kept.
        network: its name at the library, or a YAML file that describes it; None: it is recognised.

    Raises:
        UserError: it is of no network that there is a space for, or computes something else than that.

    Example:
        supernet, arch, network = ofa.from_module(timm.create_model("mobilenetv2_100", pretrained=True))
        subnet = ofa.extract(supernet, arch)
    """
    state = {name: tensor.detach().float().cpu() for name, tensor in module.state_dict().items()}
    source, settings = _source(module), _settings(module)
    if not state:
        raise UserError(f"{type(module).__name__} has no weights; give a trained network.")
    candidates = _candidates(source, network or settings.get("architecture"), given=network is not None)
    found = fitting_networks(state, candidates)
    if not found:
        # The same question once more, for its error: which network it is like.
        found = [recognise(state, f"Module {type(module).__name__}", source or "timm", network)]
    best = _most_alike(module, found)
    space = best.network.load_space()
    arch = best.network.find_arch(space)
    supernet = Supernet(space, classes or len(best.tensors[-1]))
    load_in_order(supernet, arch, best.tensors)
    return FromModule(supernet, arch, _described(best.network, settings))


def _source(module: nn.Module) -> Source | None:
    """Whose definition a module's class is; None: somebody else's."""
    package = type(module).__module__.partition(".")[0]
    if package == "timm":
        return "timm"
    return "torchvision" if package == "torchvision" else None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What timm notes of a module's weights, under timm's names; empty for modules of others."""
    return getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}


def _candidates(source: Source | None, name: str | None, given: bool) -> list[Network]:
    """The networks that a module may be.

    Args:
        source: whose module it is.
        name: of the network; None: unknown.
        given: whether the user gave the name; otherwise there may be no network of that name.
    """
    if given and name is not None:
        return find_networks(source or "timm", name)
    known = networks_of(source) if source else list(packaged_networks())
    return [network for network in known if network.name == name] or known


@torch.no_grad()
def _most_alike(module: nn.Module, found: list[Recognised]) -> Recognised:
    """The network whose logits are those of the module.

    Raises:
        UserError: none has the same logits.
    """
    original = copy.deepcopy(module).float().cpu().eval()
    images = torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    wanted = original(images)
    best, difference = found[0], float("inf")
    for one in found:
        space = one.network.load_space()
        arch = one.network.find_arch(space)
        supernet = Supernet(space, len(one.tensors[-1])).eval()
        load_in_order(supernet, arch, one.tensors)
        # The extracted subnet takes images of any side, the supernet resizes them.
        logits = extract(supernet, arch)(images)
        apart = float((logits - wanted).abs().max() / wanted.abs().max())
        if apart < difference:
            best, difference = one, apart
    if difference > TOLERANCE:
        names = ", ".join(one.network.flags for one in found)
        raise UserError(
            f"Module {type(module).__name__} has the tensors of {names}, but its logits differ by "
            f"{difference:.1g} of the largest; describe it in a YAML file, with its activation, padding and "
            "epsilon."
        )
    return best


def _described(network: Network, settings: dict[str, Any]) -> Network:
    """The entry with what a module itself says of its weights, which may not be those of the entry."""
    said: dict[str, Any] = {}
    for field in ("mean", "std"):
        if field in settings:
            said[field] = tuple(settings[field])
    if settings.get("license"):
        said["licence"] = settings["license"]
    if settings.get("hf_hub_id"):
        said["url"] = f"https://huggingface.co/{settings['hf_hub_id']}"
    return network.model_copy(update=said)
