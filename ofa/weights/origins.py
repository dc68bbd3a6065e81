"""Where weights come from, under which licence, and how their images are normalised."""

from pathlib import Path
from typing import NamedTuple

from engine.data.dataset import Preprocessing
from engine.model import WeightsOrigin
from engine.run import digest
from ofa.weights.networks import Network

# All of them were trained on ImageNet, with its mean and deviation.
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Publisher(NamedTuple):
    """Who published weights. licence: of the weights."""

    source: str
    url: str
    licence: str


OFA = Publisher("once-for-all", "https://github.com/mit-han-lab/once-for-all", "MIT")
# By what --from of ofa.convert calls them.
PUBLISHERS = {
    "attentive_nas": Publisher(
        "AttentiveNAS", "https://github.com/facebookresearch/AttentiveNAS", "CC BY-NC 4.0"
    ),
    "alphanet": Publisher("AlphaNet", "https://github.com/facebookresearch/AlphaNet", "CC BY-NC 4.0"),
    "ofa_mbv3": OFA,
    "ofa_mbv3_w1.2": OFA,
    "ofa_proxyless": OFA,
    "ofa_resnet50": OFA,
}


def origin_of(kind: str, file: Path) -> WeightsOrigin:
    """Where a published supernet comes from.

    Args:
        kind: what --from of ofa.convert calls it.
        file: the checkpoint.
    """
    source, url, licence = PUBLISHERS[kind]
    return WeightsOrigin(name=kind, source=source, url=url, licence=licence, sha256=digest(file))


def origin_of_network(network: Network, file: Path) -> WeightsOrigin:
    """Where the weights of a single network come from.

    Args:
        network: the entry that describes it.
        file: its weights.
    """
    licence = network.licence
    # Libraries have several files of one network, some under other licences; a package has one.
    if network.source in ("timm", "torchvision") and licence != "unknown":
        licence += f", if these are {network.source}'s default weights of that name"
    return WeightsOrigin(
        name=network.name,
        source=network.package or network.source,
        url=network.url or None,
        licence=licence,
        sha256=digest(file),
    )
