"""Networks of timm and torchvision, and ours with their tensors in the same order."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from ofa.space.arch import Arch
from ofa.space.published import published
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet

Entry = dict[str, Any]


def entries(*families: str, source: str | None = None) -> list[Any]:
    """The networks of some families' files as parameters of a test; of one source, or of all."""
    found = []
    for family in families:
        path = Path(str(files("ofa.weights"))) / "networks" / f"{family}.yaml"
        for entry in yaml.safe_load(path.read_text()):
            if source in (None, entry["source"]):
                found.append(pytest.param(entry, id=f"{entry['source']}-{entry['name']}"))
    return found


def original(entry: Entry) -> nn.Module:
    """The network as its source defines it, without random layers."""
    if entry["source"] == "torchvision":
        models = pytest.importorskip("torchvision.models")
        net = models.get_model(entry["name"])
    else:
        timm = pytest.importorskip("timm")
        # Packages hold tensors of networks that timm defines.
        name = entry["name"] if entry["source"] == "timm" else f"tf_{entry['space']}"
        net = timm.create_model(name)
    for module in net.modules():
        # These would draw at random in train mode.
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    assert isinstance(net, nn.Module)
    return net


def space_and_arch(entry: Entry, resolution: int | None = None) -> tuple[Space, Arch]:
    """The space with the changes of the source, and the published network in it.

    Args:
        entry: of the networks' file.
        resolution: another side of the images, so that a test takes less time; None: the published one.
    """
    packaged = load_space(entry["space"])
    arch = published(packaged)[entry["space"]].arch
    values = packaged.model_dump()
    for field, value in entry.get("changes", {}).items():
        # A change of `head` names only the fields of it that differ.
        values[field] = values[field] | value if isinstance(value, dict) else value
    if resolution is not None:
        values["resolution"] = (resolution,)
        arch = arch.model_copy(update={"resolution": resolution})
    return Space.model_validate(values), arch


def shaken(net: nn.Module) -> nn.Module:
    """The network with no trivial scale, shift or statistic, so that no mistake hides behind one."""
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1:
            positive = "weight" in name or "var" in name
            nn.init.uniform_(tensor, 0.5, 1.5) if positive else nn.init.normal_(tensor, std=0.1)
    return net


def tensors_in_order(net: nn.Module) -> list[Tensor]:
    """All tensors of a network but BatchNorm's counters, in the order in which its layers are registered."""
    return [tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")]


def filled_in_order(space: Space, arch: Arch, tensors: list[Tensor]) -> Subnet:
    """Our network with another's tensors, in order."""
    net = Subnet(space, arch, 1000)
    for ours, theirs in zip(tensors_in_order(net), tensors, strict=True):
        # A linear layer of ours may be a 1x1 convolution of theirs, or the other way round.
        assert ours.squeeze().shape == theirs.squeeze().shape
        ours.copy_(theirs.reshape(ours.shape))
    return net


def logits(net: nn.Module, x: Tensor, training: bool) -> Tensor:
    with torch.no_grad():
        found: Tensor = net.train(training)(x)
    return found
