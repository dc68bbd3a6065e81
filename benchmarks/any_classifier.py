"""Which networks of timm and torchvision become a verified file for which target.

    python benchmarks/any_classifier.py OUT.jsonl [--networks timm:levit_128s,...] [--targets cpu,nnapi]
    python benchmarks/any_classifier.py OUT.jsonl --table

The weights are random, with statistics as after training: what can be written does not depend on what was
learned, and accuracy is not what is measured. A network that is in OUT.jsonl already is left out, so the
command may be stopped and started again. --table prints what OUT.jsonl holds as Markdown.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import UserError
from export.api import job_of_module
from export.job import ExportJob
from export.pipeline import write_file
from export.targets import TARGETS, Target, find_targets

CLASSES, IMAGES = 10, 4
ANY_LOSS = 100.0  # points of top-1: agreeing with a network that knows nothing says nothing about 8 bits
# With the side of the image: the smallest that the network can be built for, since time is what is short.
NETWORKS: tuple[tuple[str, int], ...] = (
    ("torchvision:mobilenet_v2", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:mobilenet_v3_large", 64),
    ("timm:mobilenetv4_conv_small", 64),
    ("timm:mobilenetv4_hybrid_medium", 64),
    ("torchvision:efficientnet_b0", 64),
    ("timm:tf_efficientnet_lite0", 64),
    ("timm:tf_efficientnetv2_b0", 64),
    ("timm:tinynet_e", 64),
    ("timm:mobilenet_edgetpu_v2_s", 64),
    ("timm:convnext_atto", 64),
    ("timm:convnextv2_atto", 64),
    ("timm:repvgg_a0", 64),
    ("timm:mobileone_s0", 64),
    ("timm:regnetx_002", 64),
    ("timm:regnety_002", 64),
    ("timm:ghostnet_050", 64),
    ("timm:repghostnet_050", 64),
    ("torchvision:shufflenet_v2_x0_5", 64),
    ("torchvision:squeezenet1_1", 64),
    ("torchvision:densenet121", 64),
    ("torchvision:mnasnet0_5", 64),
    ("timm:hardcorenas_a", 64),
    ("torchvision:googlenet", 64),
    ("timm:inception_v3", 107),
    ("torchvision:resnet18", 64),
    ("torchvision:resnet50", 64),
    ("timm:levit_128s", 224),
    ("timm:efficientvit_b0", 64),
    ("timm:efficientvit_m0", 224),
    ("timm:fastvit_t8", 64),
    ("timm:mobilevit_xxs", 64),
    ("timm:mobilevitv2_050", 64),
    ("timm:edgenext_xx_small", 64),
    ("timm:repvit_m0_9", 64),
    ("timm:vit_tiny_patch16_224", 224),
    ("torchvision:vit_b_16", 64),
    ("torchvision:swin_t", 64),
    ("timm:swin_tiny_patch4_window7_224", 224),
    ("torchvision:maxvit_t", 224),
    ("timm:xcit_nano_12_p16_224", 64),
    ("timm:poolformer_s12", 64),
)


def build(name: str, side: int) -> nn.Module:
    """The network in eval mode, with random weights and statistics as after training."""
    library, model = name.split(":")
    torch.manual_seed(0)
    net: nn.Module
    if library == "timm":
        import timm

        net = timm.create_model(model, num_classes=CLASSES)
    else:
        import torchvision

        more: dict[str, Any] = {}
        if model == "googlenet":
            more = {"aux_logits": False, "init_weights": False}
        if model == "vit_b_16":
            more = {"image_size": side}
        net = torchvision.models.get_model(model, num_classes=CLASSES, **more)
    for key, tensor in net.state_dict().items():
        # Statistics of 0 and 1 would hide a norm that is folded wrongly.
        if "running_mean" in key:
            nn.init.normal_(tensor, std=0.1)
        elif "running_var" in key:
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.ndim == 2 and not tensor.any():
            # A head that starts at zero would give zeros, which every file computes.
            nn.init.normal_(tensor, std=0.02)
    return net.eval()


def outcome(job: ExportJob, target: Target, path: Path) -> dict[str, Any]:
    """What became of one file."""
    start = time.perf_counter()
    try:
        written = write_file(job, target, path, ANY_LOSS)
        error, complaint = None, written.complaint
        if written.parity is not None:
            error = written.parity.relative_error
    except UserError as failure:
        error, complaint = None, str(failure)
    except Exception as failure:  # what is looked for: an error of a library that reaches the user
        error, complaint = None, f"RAW {type(failure).__name__}: {str(failure)[:900]}"
    return {"complaint": complaint, "error": error, "seconds": round(time.perf_counter() - start, 1)}


def measure(name: str, side: int, targets: list[Target]) -> dict[str, Any]:
    """The outcome for every target, by its name."""
    row: dict[str, Any] = {"network": name, "side": side, "torch": torch.__version__}
    try:
        net = build(name, side)
        images = torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
        job = job_of_module(net, images, None, None, None, {"subnet": "net"})
        # The same images: nothing is learned here about accuracy.
        job = job._replace(calibration=[images.numpy()])
    except UserError as failure:
        return row | {"complaint": str(failure)}
    except Exception as failure:
        return row | {"complaint": f"RAW {type(failure).__name__}: {str(failure)[:900]}"}
    row["params"], row["macs"] = job.facts["params"], job.facts["macs"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            found[target.name] = outcome(job, target, Path(folder) / target.file_name("net"))
    return row | {"targets": found}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: the difference from torch, or a number that stands for a complaint below."""
    names: list[str] = []
    for row in rows:
        names += [name for name in row.get("targets", {}) if name not in names]
    lines = [f"| network | side | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    complaints: list[str] = []
    for row in rows:
        cells = []
        for name in names:
            result = row.get("targets", {}).get(name, {"complaint": row.get("complaint", "not tried")})
            if not result["complaint"]:
                cells.append(f"{result['error']:.0e}")
                continue
            if result["complaint"] not in complaints:
                complaints.append(result["complaint"])
            cells.append(f"no ({complaints.index(result['complaint']) + 1})")
        lines.append(f"| {row['network']} | {row['side']} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"{i}. {text}" for i, text in enumerate(complaints, start=1)]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing in the file, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", default=",".join(name for name, _ in NETWORKS))
    ours = [target.name for target in TARGETS if target.format in ("onnx", "ort")]
    parser.add_argument("--targets", default=",".join(ours))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    rows = [json.loads(line) for line in lines]
    if given.table:
        print(table(rows))
        return
    known = {row["network"] for row in rows}
    sides = dict(NETWORKS)
    for name in given.networks.split(","):
        if name in known:
            continue
        row = measure(name, sides.get(name, 224), find_targets(given.targets))
        with given.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(name, json.dumps(row.get("targets", row.get("complaint")))[:200], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
