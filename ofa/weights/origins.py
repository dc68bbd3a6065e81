"""Where published supernets come from, under which licence, and how their images are normalised."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from engine.data.dataset import Preprocessing
from engine.model import WeightsOrigin

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
    "torchvision": Publisher("torchvision", "https://github.com/pytorch/vision", "BSD-3-Clause"),
    "timm": Publisher("timm", "https://github.com/huggingface/pytorch-image-models", "Apache-2.0"),
}


def origin_of(kind: str, file: Path) -> WeightsOrigin:
    """Where a converted file comes from.

    Args:
        kind: what --from of ofa.convert calls it.
        file: the checkpoint.
    """
    source, url, licence = PUBLISHERS[kind]
    name = "mobilenet_v3_large" if kind in ("torchvision", "timm") else kind
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return WeightsOrigin(name=name, source=source, url=url, licence=licence, sha256=digest)
