"""Networks that everybody knows, as files exported the same way, to compare costs with.

"Searching for MobileNetV3" (2019, arXiv:1905.02244) and "EfficientNet" (2019, arXiv:1905.11946), as
torchvision has them. Their weights are random: they cost what trained ones cost, and have no accuracy.
"""

from pathlib import Path

import torch
import torchvision

from engine.onnx_file import write_onnx
from engine.seed import derive

BASELINES = {
    "mobilenet_v3_small": "MobileNetV3 Small",
    "mobilenet_v3_large": "MobileNetV3 Large",
    "efficientnet_b0": "EfficientNet-B0",
}


def write_baseline(name: str, side: int, classes: int, folder: Path) -> Path:
    """Write torchvision's network `name` for `classes` and RGB images of `side` x `side` into a folder."""
    path = folder / f"{name}-{side}-{classes}.onnx"
    # torchvision draws weights from the global generator, which must be the same for the caller afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "baseline", name))
        network = torchvision.models.get_model(name, weights=None, num_classes=classes).eval()
    # A batch of two: torch's exporter takes an axis of length one for a constant.
    metadata = {"network": f"torchvision {name}, random weights"}
    write_onnx(network, torch.zeros(2, 3, side, side), path, metadata)
    return path
