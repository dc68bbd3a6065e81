"""Write chosen subnets as ONNX files, each proved equal to its torch model before it gets its name."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.augment import resize
from engine.cli import main
from engine.config import format_count
from engine.errors import UserError
from engine.macs import count_parameters
from engine.run import versions, write_json
from export.verify import TOLERANCE, Parity, check_file, compare
from ofa.space import Arch, decode, encode, find_arch
from ofa.subnet import ConvBN, accuracy
from ofa.trained import RunCommand, Trained, run_flag
from predictors.pairs import read_selected

OPSET, IR_VERSION = 18, 10


class Export(RunCommand):
    """Write subnets as ONNX: BatchNorm folded, one file, any batch size; input `image`, output `logits`.

    Each file is compared with the torch model in onnxruntime on real images before it is kept; a file that differs is not.
    The exit status is 1 if any fails. What a device must do with an image before is in the file's metadata. A run that
    trained one architecture alone gives that one.

    examples:
      python -m export.onnx                          every subnet that predictors.select chose
      python -m export.onnx --selected 600M
      python -m export.onnx --arch largest
    """

    selected: str | None = Field(None, description="only this budget, as named in the run's selected/ folder; none: all of them")
    arch: str | None = Field(None, description="instead: smallest, largest, a JSON file or JSON of an architecture")
    images: int = Field(64, ge=2, description="validation images that torch and onnxruntime must agree on")

    def execute(self) -> int:
        """Export each, table, exit status."""
        trained = self.open()
        chosen = self._chosen(trained)
        table = Table("file", "size", "MACs", "relative error", "same top-1", "images", "verdict")
        failed = 0
        for name, arch, facts in chosen:
            path = self.run / "export" / f"{name}.onnx"
            parity, complaint = export(trained, arch, facts, path, self.images)
            failed += bool(complaint)
            size = f"{path.stat().st_size / 1e6:.2f} MB" if not complaint else "-"
            numbers = (f"{parity.relative_error:.1e}", f"{parity.same_top1:.1%}", str(parity.images))
            table.add_row(path.name, size, format_count(trained.cost(arch)[0]), *numbers, complaint or "equal")
        Console().print(table)
        print(f"written to {self.run / 'export'}")
        if trained.model.arch is None:
            print(f"next: python -m predictors.report{run_flag(self.run)}")
        return 1 if failed else 0

    def _chosen(self, trained: Trained) -> list[tuple[str, Arch, dict[str, Any]]]:
        """Names, architectures and what selection knows of them, fewest MACs first."""
        if trained.model.arch is not None:
            return [("alone", trained.model.arch, {})]
        if self.arch is not None:
            name = "subnet" if self.arch.lstrip().startswith("{") else Path(self.arch).stem
            return [(name, find_arch(trained.space, self.arch), {})]
        chosen = read_selected(self.run)
        if self.selected is not None and self.selected not in dict(chosen):
            raise UserError(f"Run '{self.run}' has no selected subnet '{self.selected}'; it has {', '.join(dict(chosen))}.")
        return [
            (name, decode(trained.space, encode(trained.space, facts.arch)), {"predicted_accuracy": facts.predicted_accuracy})
            for name, facts in chosen
            if self.selected in (None, name)
        ]


def export(trained: Trained, arch: Arch, facts: dict[str, Any], path: Path, images: int) -> tuple[Parity, str]:
    """The calibrated subnet of `arch` as `path`, with manifest `path`.json. Returns the comparison and a complaint or nothing.

    The file appears only if the comparison passes.
    """
    subnet = trained.subnet(arch)
    metadata = describe(trained, arch, facts | {"val_accuracy": accuracy(subnet, trained.data, "val")})
    subnet = subnet.cpu()
    x = resize(next(iter(trained.data.batches("val", images, images)))[0].cpu(), arch.resolution)
    manifest = path.with_suffix(".json")
    for stale in (path, manifest):  # an older file must not survive a failure
        stale.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        candidate = Path(folder) / path.name
        to_onnx(subnet, x.new_zeros(2, *x.shape[1:]), candidate, metadata)
        parity = compare(subnet, candidate, x)
        complaint = check_file(candidate, count_parameters(subnet))
        if not complaint and not parity.passed:
            complaint = f"differs from torch by more than {TOLERANCE:g}, or in top-1"
        if not complaint:
            candidate.replace(path)
            write_json(manifest, metadata | {"parity": parity._asdict(), "bytes": path.stat().st_size})
    return parity, complaint


def to_onnx(module: nn.Module, example_NCHW: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """`module` (eval mode) as one ONNX file with a dynamic batch axis and `metadata` as string properties."""
    folded = fold_batch_norm(module)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        folded,
        (example_NCHW.contiguous(),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    _strip(model)
    onnx.helper.set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A contiguous copy of `module` whose convolutions carry their BatchNorm's scale and shift."""
    folded = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for block in folded.modules():
        if isinstance(block, ConvBN):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()  # type: ignore[assignment]
    return folded


def describe(trained: Trained, arch: Arch, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything a device's engineer needs to feed the file and to trust it."""
    macs, params = trained.cost(arch)
    model = trained.model
    preparation = model.preprocessing | {
        "resize": [arch.resolution, arch.resolution],
        "interpolation": "bicubic, a = -0.75, half-pixel centres, no antialiasing, not clipped (torch.nn.functional.interpolate)",
        "scale": "divide by 255",
        "mean": model.mean,
        "std": model.std,
        "layout": "NCHW",
        "channels": "RGB" if model.channels == 3 else "gray",
    }
    return {
        "classes": model.classes,
        "preprocessing": preparation,
        "arch": arch.model_dump(mode="json"),
        "space": trained.space.name,
        "macs": macs,
        "params": params,
        **facts,
        "versions": versions(),
    }


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter says about the source: stack traces and paths of this machine."""
    model.doc_string = ""
    for holder in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.functions):
        holder.doc_string = ""
        del holder.metadata_props[:]


if __name__ == "__main__":
    main(Export)
