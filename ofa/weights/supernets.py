"""Load published supernets: which of their tensors is which of ours.

Files of OFA (2020, arXiv:1908.09791), AttentiveNAS (2021, arXiv:2011.09011) and AlphaNet (2021,
arXiv:2102.07954) hold a whole supernet, whose tensors are found by their names.
"""

import re
from pathlib import Path

from engine.errors import UserError
from ofa.supernet import Supernet
from ofa.weights.reading import State

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
