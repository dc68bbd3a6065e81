"""Load a single network: its tensors and ours are the same in the order in which layers are defined.

Names of layers differ between sources, and even between versions of one. The order does not: a state_dict
lists a module's layers as they were defined, and every kind of block defines its layers in the order of timm
and torchvision. Roles and shapes are compared all the same, so that a file of another network is refused.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ofa.space.arch import Arch, active_blocks, largest
from ofa.space.space import Space
from ofa.subnet import Subnet
from ofa.supernet import Supernet
from ofa.training.phases import LARGEST, sort_channels
from ofa.weights.reading import State
from ofa.weights.widths import sort_widths

COUNTER = "num_batches_tracked"  # of batches that a BatchNorm saw in training, which no inference reads
CLASSIFIER = 2  # tensors of the classifier, which are the last ones: weight and bias

# The layers of one module in the order of their definition, by their names. The first line that has all names
# of a module counts. So the depthwise-separable block comes before the inverted one, whose names include its.
LAYOUTS = (
    ("weight", "bias", "running_mean", "running_var", COUNTER),
    ("conv", "bn"),
    # timm's EfficientNet and MobileNet: depthwise-separable, inverted, fused, plain and universal blocks.
    ("conv_dw", "bn1", "se", "conv_pw", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"),
    ("conv_exp", "bn1", "se", "conv_pwl", "bn2"),
    ("conv", "bn1"),
    ("dw_start", "pw_exp", "dw_mid", "se", "pw_proj"),
    ("conv_reduce", "conv_expand"),
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "norm_head", "classifier"),
    # EfficientNet of the package efficientnet-pytorch.
    ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"),
    ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"),
    # torchvision's and timm's ResNet, and RegNet.
    ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample"),
    ("conv1", "conv2", "se", "conv3", "downsample"),
    ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
    ("stem", "s1", "s2", "s3", "s4", "head"),
    ("stem", "trunk_output", "fc"),
    ("proj", "f"),
    ("a", "b", "se", "c"),
    # torchvision's MobileNet, EfficientNet and MnasNet number most of their layers.
    ("features", "classifier"),
    ("layers", "classifier"),
)


class Slot(NamedTuple):
    """The place of one tensor in a network.

    Args:
        name: of the tensor.
        role: what it is in its layer: weight, bias, running_mean or running_var.
        shape: 1x1 convolutions are written as linear layers, (outputs, inputs).
    """

    name: str
    role: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


def slots_of(state: State, names: Iterable[str]) -> list[Slot]:
    """The places of these tensors, in this order and without the counters of BatchNorm."""
    slots = []
    for name in names:
        role, shape = name.rpartition(".")[2], tuple(state[name].shape)
        if role == COUNTER:
            continue
        if shape[2:] == (1, 1):  # a linear layer on the pooled map may be such a convolution
            shape = shape[:2]
        slots.append(Slot(name, role, shape))
    return slots


def slots_of_arch(space: Space, arch: Arch, classes: int, channels: int = 3) -> list[Slot]:
    """The places of the tensors of an architecture, by the names that they have in a subnet."""
    with torch.device("meta"):
        state = Subnet(space, arch, classes, channels).state_dict()
    return slots_of(state, state)


def first_difference(found: Sequence[Slot], wanted: Sequence[Slot]) -> int | None:
    """The place of the first tensor that is another in both networks; None if they are the same network.

    The number of classes counts for nothing.
    """
    last = len(wanted) - CLASSIFIER
    for place, (given, expected) in enumerate(zip(found, wanted, strict=False)):
        same_shape = given.shape == expected.shape
        if place >= last:  # axis 0 of the classifier are the classes
            same_shape = given.shape[1:] == expected.shape[1:]
        if given.role != expected.role or not same_shape:
            return place
    return None if len(found) == len(wanted) else min(len(found), len(wanted))


def definition_order(names: Iterable[str]) -> list[str]:
    """The names of a state_dict, sorted as its layers were defined.

    safetensors files are sorted by name. The layers of each module are ordered by `LAYOUTS`; modules that are
    in none by their numbers.

    Args:
        names: of the tensors, such as `blocks.0.0.conv_dw.weight`, in any order.
    """
    # {first part of the name: {rest of the name: name}}
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        modules.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = name
    return _ordered(modules)


def _ordered(modules: dict[str, dict[str, str]]) -> list[str]:
    ordered = []
    for module in _sorted_layers(modules):
        tensors = modules[module]
        if list(tensors) == [""]:  # a tensor, not a module
            ordered.append(tensors[""])
            continue
        inner: dict[str, dict[str, str]] = {}
        for rest, name in tensors.items():
            inner.setdefault(rest.partition(".")[0], {})[rest.partition(".")[2]] = name
        ordered += _ordered(inner)
    return ordered


def _sorted_layers(layers: Iterable[str]) -> list[str]:
    names = set(layers)
    for layout in LAYOUTS:
        if names.issubset(layout):
            return [name for name in layout if name in names]
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts numbers by their value: `b2` before `b10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


@torch.no_grad()
def load_in_order(supernet: Supernet, arch: Arch, tensors: Sequence[Tensor]) -> bool:
    """Put a trained network into a supernet, in place, as one of its architectures.

    That architecture then computes the same as the network, and so does the largest one: its kernels,
    expansions and widths hold the network's with zeros around, and blocks that the network lacks are their
    identity shortcut. Channels are sorted by importance, so that narrower subnets keep the best.

    Args:
        supernet: newly made, so that blocks are still their shortcuts; of the network's space.
        arch: the network.
        tensors: its tensors in the order of `slots_of_arch`; only the number of classes may differ.

    Returns:
        Whether the classifier stayed as it was, because the number of classes differs.
    """
    slots = slots_of_arch(supernet.space, arch, supernet.classes, supernet.channels)
    fresh = len(tensors[-1]) != supernet.classes
    if fresh:
        slots = slots[:-CLASSIFIER]
    targets = _whole_tensors(supernet, arch)
    for slot, tensor in zip(slots, tensors, strict=False):
        target = targets[slot.name]
        missing_axes = (1,) * (target.ndim - len(slot.shape))  # of a 1x1 convolution
        embed(target, tensor.reshape(slot.shape + missing_axes))
    # Only the largest subnet and the network must stay what they are: no other has been trained.
    sort_channels(supernet, LARGEST)
    sort_widths(supernet, tensors[-CLASSIFIER])
    return fresh


def _whole_tensors(supernet: Supernet, arch: Arch) -> dict[str, Tensor]:
    """The supernet's tensors, whole, by the names that they have in the subnet of `arch`."""
    space = supernet.space
    # A subnet numbers its blocks through, and the largest one has more of them.
    places = [(stage, block) for stage, block, _ in active_blocks(space, largest(space))]
    numbers = {}
    for number, (stage, block, _) in enumerate(active_blocks(space, arch)):
        numbers[stage, block] = number
    found = {}
    # The slices of the largest architecture are the tensors themselves.
    for name, tensor in supernet.slices(largest(space)).items():
        match = re.match(r"blocks\.(\d+)\.(.*)", name)
        if match is None:
            found[name] = tensor
        elif places[int(match[1])] in numbers:
            found[f"blocks.{numbers[places[int(match[1])]]}.{match[2]}"] = tensor
    return found


def embed(target: Tensor, source: Tensor) -> None:
    """Copy a smaller weight into a larger one, so that the larger layer computes the same outputs.

    The first outputs of `target` become those of `source`: they read the inputs of `source` through the
    centre of the kernel, and nothing else. No output reads inputs past those of `source`, so these have no
    importance when channels are sorted.

    Args:
        target: weight or statistics of our layer, of up to 4 axes; changed in place.
        source: those of their layer; no axis is longer than that of `target`.
    """
    target[: len(source)] = 0
    if source.ndim > 1:
        target[:, source.shape[1] :] = 0
    place = target
    for axis, size in enumerate(source.shape):
        start = (target.shape[axis] - size) // 2 if axis >= 2 else 0
        place = place.narrow(axis, start, size)
    place.copy_(source)
