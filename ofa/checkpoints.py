"""Published checkpoints: which of their tensors is which of ours.

OFA (2020, arXiv:1908.09791), AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021, arXiv:2102.07954)
files hold a whole supernet. torchvision's and timm's MobileNetV3-Large (2019, arXiv:1905.02244) are one small
network, which goes into the largest subnet of `ofa_mbv3` so that this computes the same function: see
`embed`.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from engine.checkpoint import load_weights
from engine.errors import UserError
from ofa.supernet import Supernet
from ofa.training.phases import LARGEST, sort_channels

State = dict[str, Tensor]
PLACES = ("state_dict", "model", "state_dict_ema", "model_ema")  # where files keep them, in this order

# Ours -> theirs, applied in order to the names of a supernet whose blocks are numbered through.
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
    """The tensors of a .pt, .pth, .tar or .safetensors file, under `state_dict`, `model` or at the top; no
    code in it runs.

    Raises:
        UserError: it cannot be read so, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Checkpoint '{path}' cannot be read: {error.strerror or error}.") from None
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        if isinstance(error, UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"Checkpoint '{path}' holds more than tensors, and loading that could run code; where you "
                "trust it, load it with torch "
                "and save its state_dict alone."
            ) from None
        raise UserError(
            f"Checkpoint '{path}' cannot be loaded as weights ({type(error).__name__}); copy or download it "
            "again."
        ) from None
    while isinstance(found, dict) and (
        inner := next((k for k in PLACES if isinstance(found.get(k), dict)), None)
    ):
        found = found[inner]
    named = found.items() if isinstance(found, dict) else ()
    tensors = {
        re.sub(r"^(module\.)+", "", str(name)): value for name, value in named if isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(
            f"Checkpoint '{path}' holds no named tensors, neither at the top nor under {', '.join(PLACES)}; "
            "save a state_dict."
        )
    broken = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if broken:
        raise UserError(
            f"Checkpoint '{path}' is damaged: {broken[0]} is not finite; copy or download it again."
        )
    return tensors


def simplified(name: str) -> str:
    """Their name without what differs between versions of the reference code: wrappers, and layers wrapped in
    one of the same name."""
    name = name.removeprefix("module.").removeprefix("last_conv.").replace(".mobile_inverted_conv.", ".conv.")
    return re.sub(r"\b([a-z_]+)(\.\1)+\b", r"\1", name)


def supernet_names(supernet: Supernet) -> dict[str, str]:
    """Theirs by ours for a checkpoint of OFA's, AttentiveNAS's or AlphaNet's whole supernet."""
    space = supernet.space
    number = {
        (i, j): n
        for n, (i, j) in enumerate((i, j) for i, s in enumerate(space.stages) for j in range(s.depth[-1]))
    }
    rules = OFA_NAMES[space.stages[0].block]
    names = {}
    for ours in supernet.state_dict():
        theirs = re.sub(r"^stages\.(\d+)\.(\d+)\.", lambda m: f"blocks.{number[int(m[1]), int(m[2])]}.", ours)
        if space.head is not None and space.head.expand is None:
            theirs = re.sub(r"^head\.conv\.", "feature_mix_layer.", theirs)
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        names[ours] = simplified(theirs)
    return names


def load_supernet(supernet: Supernet, tensors: State, path: Path) -> bool:
    """Fill the supernet from the tensors of a published checkpoint; its classifier stays as it is if the
    number of classes differs.

    Returns whether it does.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the sentence names the first.
    """
    theirs = {simplified(name): tensor for name, tensor in tensors.items()}
    state, names = supernet.state_dict(), supernet_names(supernet)
    complain = f"Checkpoint '{path}' is not of space '{supernet.space.name}'"
    missing = [theirs_name for theirs_name in names.values() if theirs_name not in theirs]
    extra = [name for name in theirs.keys() - set(names.values()) if not UNUSED.search(name)]
    if missing or extra:
        said = [
            f"{what} {len(found)} tensors such as {min(found)}"
            for what, found in (("lacks", missing), ("has beside it", extra))
            if found
        ]
        raise UserError(f"{complain}: it {' and '.join(said)}; choose another --from.")
    fresh = len(theirs[names["classifier.weight"]]) != supernet.classes
    for ours, name in names.items():
        wanted, given = state[ours].shape, theirs[name].shape
        if ours.startswith("classifier.") and fresh:
            continue
        if given != wanted and given != (*wanted, 1, 1):
            raise UserError(
                f"{complain}: {name} is {tuple(given)} where {tuple(wanted)} is wanted; choose another "
                "--from."
            )
        state[ours].copy_(theirs[name].reshape(wanted))
    return fresh


def network_names(kind: str, blocks: tuple[int, ...]) -> dict[str, str]:
    """Prefixes of theirs by prefixes of ours for torchvision's (`torchvision`) and timm's (`timm`)
    MobileNetV3-Large.

    blocks: blocks of each stage.
    """
    torchvision = kind == "torchvision"
    names = (
        {
            "stem.conv": "features.0.0",
            "stem.bn": "features.0.1",
            "head.conv.conv": "features.16.0",
            "head.conv.bn": "features.16.1",
        }
        | {"head.mix": "classifier.0", "classifier": "classifier.3"}
        if torchvision
        else {
            "stem.conv": "conv_stem",
            "stem.bn": "bn1",
            "head.conv.conv": "blocks.6.0.conv",
            "head.conv.bn": "blocks.6.0.bn1",
        }
        | {"head.mix": "conv_head", "classifier": "classifier"}
    )
    places = [(i, j) for i, count in enumerate(blocks) for j in range(count)]
    for n, (i, j) in enumerate(places, start=1):
        ours = f"stages.{i}.{j}"
        layers = ["depthwise", "project"] if i == 0 else ["expand", "depthwise", "project"]
        if torchvision:
            excited = i in (2, 4, 5)
            for k, layer in enumerate(layers):
                at = f"features.{n}.block.{k + (excited and layer == 'project')}"
                names |= {f"{ours}.{layer}.conv": f"{at}.0", f"{ours}.{layer}.bn": f"{at}.1"}
            squeeze = {
                f"{ours}.se.reduce": f"features.{n}.block.2.fc1",
                f"{ours}.se.restore": f"features.{n}.block.2.fc2",
            }
        else:
            convs = ["conv_dw", "conv_pw"] if i == 0 else ["conv_pw", "conv_dw", "conv_pwl"]
            for k, (layer, conv) in enumerate(zip(layers, convs, strict=True), start=1):
                names |= {
                    f"{ours}.{layer}.conv": f"blocks.{i}.{j}.{conv}",
                    f"{ours}.{layer}.bn": f"blocks.{i}.{j}.bn{k}",
                }
            squeeze = {
                f"{ours}.se.{a}": f"blocks.{i}.{j}.se.conv_{b}"
                for a, b in (("reduce", "reduce"), ("restore", "expand"))
            }
        names |= squeeze if i in (2, 4, 5) else {}
    return names


MOBILENET_V3_BLOCKS = (1, 2, 3, 4, 2, 3)


def load_mobilenet_v3(supernet: Supernet, tensors: State, kind: str, path: Path) -> bool:
    """Put MobileNetV3-Large into a supernet of `ofa_mbv3` so that its largest subnet computes the same in
    eval mode.

    Blocks that MobileNetV3-Large lacks start as their identity shortcut. Hidden channels are sorted by
    importance, so that narrower subnets keep the best. The classifier stays as it is if the number of classes
    differs. Returns whether it does.

    Raises:
        UserError: a tensor is missing, left over or does not fit; the sentence names the first.
    """
    state, used = supernet.state_dict(), set()
    names = network_names(kind, MOBILENET_V3_BLOCKS)
    for ours, theirs in names.items():
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            target, source = state.get(f"{ours}.{suffix}"), tensors.get(f"{theirs}.{suffix}")
            if target is None:
                continue
            if source is None:
                raise UserError(
                    f"Checkpoint '{path}' lacks {theirs}.{suffix}; --from {kind} takes {kind}'s "
                    "MobileNetV3-Large."
                )
            used.add(f"{theirs}.{suffix}")
            if ours == "classifier" and len(source) != len(target):
                continue
            if source.ndim == 4 and target.ndim == 2:
                source = source.flatten(1)
            if source.ndim != target.ndim or any(
                s > t for s, t in zip(source.shape, target.shape, strict=True)
            ):
                raise UserError(
                    f"Checkpoint '{path}': {theirs}.{suffix} is {tuple(source.shape)}, which does not fit "
                    f"into {tuple(target.shape)}; "
                    f"--from {kind} takes {kind}'s MobileNetV3-Large."
                )
            embed(target, source)
    extra = [name for name in tensors.keys() - used if not name.endswith("num_batches_tracked")]
    if extra:
        raise UserError(
            f"Checkpoint '{path}' has {min(extra)}, which {kind}'s MobileNetV3-Large has not; choose another "
            "--from."
        )
    sort_channels(supernet, LARGEST)
    return len(tensors[f"{names['classifier']}.weight"]) != supernet.classes


def embed(target: Tensor, source: Tensor) -> None:
    """The first outputs of `target` become those of `source`: they read its inputs through the centre of the
    kernel, and nothing else.

    Outputs past those of `source` keep what they are, and whatever reads them has zeros there. Both of up to
    4 axes.
    """
    target[: len(source)] = 0
    place = target
    for axis, size in enumerate(source.shape):
        start = (target.shape[axis] - size) // 2 if axis >= 2 else 0
        place = place.narrow(axis, start, size)
    place.copy_(source)
