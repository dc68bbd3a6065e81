"""Load published checkpoints: which of their tensors is which of ours.

Files of OFA (2020, arXiv:1908.09791), AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021,
arXiv:2102.07954) hold a whole supernet. Those of torchvision and timm hold one network, MobileNetV3-Large
(2019, arXiv:1905.02244); it goes into the largest subnet of `ofa_mbv3`, which then computes the same function
(see `embed`).
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import load_weights
from engine.errors import UserError
from ofa.supernet import Supernet
from ofa.training.phases import LARGEST, sort_channels

State = dict[str, Tensor]
PLACES = ("state_dict", "model", "state_dict_ema", "model_ema")  # where files keep them, in this order
TENSORS = ("weight", "bias", "running_mean", "running_var")

# Ours -> theirs, applied in order to the names of a supernet whose blocks are numbered through. Only these
# two kinds of block have published supernets.
OFA_NAMES = {
    "inverted": (
        (r"^stem\.", "first_conv."),
        (r"\.expand\.", ".conv.inverted_bottleneck."),
        (r"\.depthwise\.conv\.matrices\.(.*)$", r".conv.depth_conv.conv.\1_matrix"),
        (r"\.depthwise\.", ".conv.depth_conv."),
        (r"\.se\.reduce\.", ".conv.depth_conv.se.fc.reduce."),
        (r"\.se\.restore\.", ".conv.depth_conv.se.fc.expand."),
        (r"\.project\.", ".conv.point_linear."),
        (r"\.shortcut\.", ".shortcut.conv."),
        (r"^head\.mix\.", "feature_mix_layer.conv."),
        (r"^head\.conv\.", "final_expand_layer."),
        (r"^classifier\.", "classifier.linear."),
    ),
    "bottleneck": (
        (r"^stem\.first\.", "input_stem.0."),
        (r"^stem\.residual\.0\.conv\.", "input_stem.1.conv."),
        (r"^stem\.residual\.0\.bn\.", "input_stem.1.conv.bn."),
        (r"^stem\.last\.", "input_stem.2."),
        (r"^(blocks\.\d+)\.conv\.", r"\1.conv2."),
        (r"\.reduce\.", ".conv1."),
        (r"\.project\.", ".conv3."),
        (r"\.shortcut\.", ".downsample."),
        (r"^classifier\.", "classifier.linear."),
    ),
}
# Counters, statistics of other subnets, and AttentiveNAS's shortcut convolutions where widths always agree:
# never used.
UNUSED = re.compile(r"num_batches_tracked$|\.bn_tracking\.|\.shortcut\.conv\.weight$")


def read_checkpoint(path: Path) -> State:
    """The tensors by name in a .pt, .pth, .tar or .safetensors file. No code in the file runs.

    They are looked for under the names in `PLACES`, also one within another, and at the top.

    Raises:
        UserError: the file cannot be read so, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return load_weights(path)
    content = _load(path)
    while isinstance(content, dict):
        inner = [place for place in PLACES if isinstance(content.get(place), dict)]
        if not inner:
            break
        content = content[inner[0]]
    tensors = {}
    entries = content if isinstance(content, dict) else {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            # DataParallel puts `module.` before every name.
            tensors[re.sub(r"^(module\.)+", "", str(name))] = value
    if not tensors:
        raise UserError(
            f"Checkpoint '{path}' holds no named tensors, neither at the top nor under {', '.join(PLACES)}; "
            "save a state_dict."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"Checkpoint '{path}' is damaged: {name} is not finite; copy or download it again."
            )
    return tensors


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Checkpoint '{path}' cannot be read: {error.strerror or error}.") from None
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        # A whole zip file that torch will not unpickle is no damaged one: there are other objects in it.
        if isinstance(error, UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"Checkpoint '{path}' holds more than tensors, and loading that could run code; where you "
                "trust it, load it with torch and save its state_dict alone."
            ) from None
        raise UserError(
            f"Checkpoint '{path}' cannot be loaded as weights ({type(error).__name__}); copy or download it "
            "again."
        ) from None


def simplified(name: str) -> str:
    """A name of theirs without the parts that differ between versions of the reference code.

    These parts are the names of wrappers, and a name that is repeated because a layer is wrapped in another
    of the same name, such as `conv.conv`.
    """
    name = name.removeprefix("module.").removeprefix("last_conv.").replace(".mobile_inverted_conv.", ".conv.")
    return re.sub(r"\b([a-z_]+)(\.\1)+\b", r"\1", name)


def supernet_names(supernet: Supernet) -> dict[str, str]:
    """The names of tensors in a checkpoint of OFA, AttentiveNAS or AlphaNet, by our names of them.

    Args:
        supernet: of the checkpoint's space.
    """
    space = supernet.space
    # Their blocks are numbered through the network, ours within each stage.
    number: dict[tuple[int, int], int] = {}
    for i, stage in enumerate(space.stages):
        for j in range(stage.depth[-1]):
            number[i, j] = len(number)
    rules = OFA_NAMES[space.stages[0].block]

    def numbered_through(match: re.Match[str]) -> str:
        return f"blocks.{number[int(match[1]), int(match[2])]}."

    names = {}
    for ours in supernet.state_dict():
        theirs = re.sub(r"^stages\.(\d+)\.(\d+)\.", numbered_through, ours)
        # MobileNetV2's head is one layer, which has the name of MobileNetV3's second one there.
        if space.head is not None and space.head.expand is None:
            theirs = re.sub(r"^head\.conv\.", "feature_mix_layer.", theirs)
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        names[ours] = simplified(theirs)
    return names


def load_supernet(supernet: Supernet, tensors: State, path: Path) -> bool:
    """Fill the supernet, in place, from the tensors of a published checkpoint.

    Args:
        supernet: of the checkpoint's space.
        tensors: what `read_checkpoint` returned.
        path: the file, for error sentences.

    Returns:
        Whether the classifier stayed as it was, because the number of classes differs.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the sentence names the first.
    """
    theirs = {simplified(name): tensor for name, tensor in tensors.items()}
    state, names = supernet.state_dict(), supernet_names(supernet)
    complaint = f"Checkpoint '{path}' is not of space '{supernet.space.name}'"
    missing = [name for name in names.values() if name not in theirs]
    extra = [name for name in theirs.keys() - set(names.values()) if not UNUSED.search(name)]
    differences = []
    if missing:
        differences.append(f"lacks {len(missing)} tensors such as {min(missing)}")
    if extra:
        differences.append(f"has beside it {len(extra)} tensors such as {min(extra)}")
    if differences:
        raise UserError(f"{complaint}: it {' and '.join(differences)}; choose another --from.")
    fresh = len(theirs[names["classifier.weight"]]) != supernet.classes
    for ours, name in names.items():
        wanted, given = state[ours].shape, theirs[name].shape
        if ours.startswith("classifier.") and fresh:
            continue
        # Their linear layers may be 1x1 convolutions.
        if given != wanted and given != (*wanted, 1, 1):
            raise UserError(
                f"{complaint}: {name} is {tuple(given)} where {tuple(wanted)} is wanted; choose another "
                "--from."
            )
        state[ours].copy_(theirs[name].reshape(wanted))
    return fresh


MOBILENET_V3_BLOCKS = (1, 2, 3, 4, 2, 3)  # of each stage of MobileNetV3-Large
EXCITED_STAGES = (2, 4, 5)  # the stages with squeeze-and-excitation
ENDS = {
    "torchvision": {
        "stem.conv": "features.0.0",
        "stem.bn": "features.0.1",
        "head.conv.conv": "features.16.0",
        "head.conv.bn": "features.16.1",
        "head.mix": "classifier.0",
        "classifier": "classifier.3",
    },
    "timm": {
        "stem.conv": "conv_stem",
        "stem.bn": "bn1",
        "head.conv.conv": "blocks.6.0.conv",
        "head.conv.bn": "blocks.6.0.bn1",
        "head.mix": "conv_head",
        "classifier": "classifier",
    },
}


def network_names(kind: str) -> dict[str, str]:
    """Their names of the layers of MobileNetV3-Large, by our names of them.

    Args:
        kind: whose network it is, `torchvision` or `timm`.
    """
    names = dict(ENDS[kind])
    number = 0
    for stage, blocks in enumerate(MOBILENET_V3_BLOCKS):
        for block in range(blocks):
            number += 1
            if kind == "torchvision":
                theirs = _torchvision_block(f"features.{number}.block", stage)
            else:
                theirs = _timm_block(f"blocks.{stage}.{block}", stage)
            names |= {f"stages.{stage}.{block}.{layer}": name for layer, name in theirs.items()}
    return names


def _layers(stage: int) -> list[str]:
    """The convolutions of a block; those of the first stage have expansion 1, and so no expansion layer."""
    return ["depthwise", "project"] if stage == 0 else ["expand", "depthwise", "project"]


def _torchvision_block(prefix: str, stage: int) -> dict[str, str]:
    """torchvision's names of a block's layers by ours. It numbers the layers through, so places shift."""
    names, place = {}, 0
    for layer in _layers(stage):
        if layer == "project" and stage in EXCITED_STAGES:
            names["se.reduce"], names["se.restore"] = f"{prefix}.{place}.fc1", f"{prefix}.{place}.fc2"
            place += 1
        names[f"{layer}.conv"], names[f"{layer}.bn"] = f"{prefix}.{place}.0", f"{prefix}.{place}.1"
        place += 1
    return names


def _timm_block(prefix: str, stage: int) -> dict[str, str]:
    """timm's names of a block's layers by ours."""
    names = {}
    # In a block without expansion the pointwise convolution is the projection, and has another name.
    convs = ["conv_dw", "conv_pw"] if stage == 0 else ["conv_pw", "conv_dw", "conv_pwl"]
    for place, (layer, conv) in enumerate(zip(_layers(stage), convs, strict=True), start=1):
        names[f"{layer}.conv"], names[f"{layer}.bn"] = f"{prefix}.{conv}", f"{prefix}.bn{place}"
    if stage in EXCITED_STAGES:
        names["se.reduce"], names["se.restore"] = f"{prefix}.se.conv_reduce", f"{prefix}.se.conv_expand"
    return names


def load_mobilenet_v3(supernet: Supernet, tensors: State, kind: str, path: Path) -> bool:
    """Put MobileNetV3-Large into the largest subnet of a supernet of `ofa_mbv3`, in place.

    That subnet then computes the same in eval mode. Blocks that MobileNetV3-Large lacks start as their
    identity shortcut. Hidden channels are sorted by importance, so that narrower subnets keep the best.

    Args:
        supernet: of `ofa.convert.space_of(kind)`.
        tensors: what `read_checkpoint` returned.
        kind: whose network it is, `torchvision` or `timm`.
        path: the file, for error sentences.

    Returns:
        Whether the classifier stayed as it was, because the number of classes differs.

    Raises:
        UserError: a tensor is missing, left over or does not fit; the sentence names the first.
    """
    state, used = supernet.state_dict(), set()
    names = network_names(kind)
    for ours, theirs in names.items():
        for suffix in TENSORS:
            target, source = state.get(f"{ours}.{suffix}"), tensors.get(f"{theirs}.{suffix}")
            if target is None:  # a convolution has no running mean, and many layers have no bias
                continue
            if source is None:
                raise UserError(
                    f"Checkpoint '{path}' lacks {theirs}.{suffix}; --from {kind} takes {kind}'s "
                    "MobileNetV3-Large."
                )
            used.add(f"{theirs}.{suffix}")
            if ours == "classifier" and len(source) != len(target):
                continue
            if source.ndim == 4 and target.ndim == 2:  # timm's head is a 1x1 convolution, ours a linear layer
                source = source.flatten(1)
            sizes = zip(source.shape, target.shape, strict=False)
            if source.ndim != target.ndim or any(given > room for given, room in sizes):
                raise UserError(
                    f"Checkpoint '{path}': {theirs}.{suffix} is {tuple(source.shape)}, which does not fit "
                    f"into {tuple(target.shape)}; --from {kind} takes {kind}'s MobileNetV3-Large."
                )
            # Their kernels and expansions are smaller than the largest subnet's in some blocks.
            embed(target, source)
    extra = [name for name in tensors.keys() - used if not name.endswith("num_batches_tracked")]
    if extra:
        raise UserError(
            f"Checkpoint '{path}' has {min(extra)}, which {kind}'s MobileNetV3-Large has not; choose another "
            "--from."
        )
    # Only the largest subnet must stay what it is: no other has been trained.
    sort_channels(supernet, LARGEST)
    return len(tensors[f"{names['classifier']}.weight"]) != supernet.classes


def embed(target: Tensor, source: Tensor) -> None:
    """Copy a smaller weight into a larger one, so that the larger layer computes the same outputs.

    The first outputs of `target` become those of `source`: they read the inputs of `source` through the
    centre of the kernel, and nothing else. Outputs past those of `source` keep their weights; whatever layer
    reads them gets zeros there when its own weight is embedded.

    Args:
        target: weight or statistics of our layer, of up to 4 axes; changed in place.
        source: those of their layer; no axis is longer than that of `target`.
    """
    target[: len(source)] = 0
    place = target
    for axis, size in enumerate(source.shape):
        start = (target.shape[axis] - size) // 2 if axis >= 2 else 0
        place = place.narrow(axis, start, size)
    place.copy_(source)
