"""Write chosen networks as files for devices, each proved equal to its torch model before it gets its
name."""

from pathlib import Path

import torch
from pydantic import Field
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.command.table import show
from engine.compute.device import pick_device
from engine.errors import UserError
from export.job import subject_of
from export.manifest import Manifest
from export.pipeline import Bake, Layout, Subject, Written, write_file
from export.recurrent import export_step, is_language
from export.source import open_source
from export.targets import find_targets
from ofa.trained import RunCommand, run_flag


class Export(RunCommand):
    """Write networks as ONNX: BatchNorm folded, one file each, input `image`, output `logits`.

    A run of ofa.train gives subnets; one of oneshot.retrain, or one that trained an architecture alone, gives
    that network; a recurrent cell becomes a step: `tokens` and `hidden` in, `logits` and `next` out. Every
    file is compared with the torch model in onnxruntime on validation images before it is kept; one that
    differs is not. The exit status is 1 if any fails. What a device must do with an image is in the file's
    metadata, and in the .json beside it.

    For 8 bits (--target cpu-int8) ranges are calibrated on training images; layers stay in float32 until no
    more than --max-drop points of top-1 are lost.

    examples:
      python -m export.onnx                              every subnet that predictors.select chose, for CPUs
      python -m export.onnx --selected 600M --target nnapi,cpu-int8
      python -m export.onnx --arch largest --bake-normalize --layout NHWC --softmax
      python -m export.targets                           what targets there are, and why
    """

    selected: str | None = Field(
        None, description="only this budget, as named in the run's selected/ folder; none: all of them"
    )
    arch: str | None = Field(
        None, description="instead: smallest, largest, a JSON file or JSON of an architecture"
    )
    target: str = Field(
        "cpu",
        description="one or more, separated by commas, of python -m export.targets, or a YAML file of one",
    )
    images: int | None = Field(None, ge=2, description="validation images to verify on; none: all")
    max_drop: float = Field(
        0.5, ge=0, le=100, description="points of top-1 on validation images that a file may lose"
    )
    calibration_images: int = Field(
        256, ge=1, description="training images whose ranges decide the 8-bit scales"
    )
    bake_normalize: bool = Field(
        False, description="put normalisation into the graph: the file takes uint8 pixels of the right size"
    )
    layout: Layout = Field(
        "NHWC",
        description="with --bake-normalize: of the pixels, as cameras (NHWC) or torch (NCHW) give them",
    )
    softmax: bool = Field(False, description="with --bake-normalize: the output is probabilities")

    def execute(self) -> int:
        """Export each, table, exit status."""
        if self.threads:
            torch.set_num_threads(self.threads)
        targets = find_targets(self.target)
        if is_language(self.run):
            return self._text()
        if self.softmax and not self.bake_normalize:
            raise UserError(
                "--softmax goes into the graph with --bake-normalize; add that, or leave out --softmax."
            )
        source = open_source(self.run, pick_device(self.device), self.data)
        choices = source.choices(self.selected, self.arch)
        bake = (
            Bake(source.data.mean, source.data.std, self.layout, self.softmax)
            if self.bake_normalize
            else None
        )
        calibration = self.calibration_images if any(target.precision == "int8" for target in targets) else 0
        table = Table("file", "size", "ms here", "top-1 torch", "top-1 file", "same top-1", "dB", "verdict")
        failed = 0
        with progress("export", len(choices) * len(targets)) as advance:
            for choice in choices:
                network = choice.build()
                subject = subject_of(source, choice.name, network, bake, self.images, calibration)
                for target in targets:
                    path = self.run / "export" / target.file_name(choice.name)
                    written = write_file(subject, target, path, self.max_drop)
                    failed += bool(written.complaint)
                    table.add_row(*_row(path, subject, written))
                    advance(path.name)
        show(table)
        print(f"written to {self.run / 'export'}")
        print(
            f"top-1 on validation images; ms here: one image with {torch.get_num_threads()} thread(s) of "
            "this CPU"
        )
        if source.searchable:
            print(f"next: python -m predictors.report{run_flag(self.run)}")
        else:
            print(
                "next: python -m export.benchmark "
                f"{self.run / 'export' / targets[0].file_name(choices[0].name)}"
            )
        return 1 if failed else 0

    def _text(self) -> int:
        """A recurrent cell has one form."""
        given = [name for name in ("selected", "arch", "bake_normalize", "softmax") if getattr(self, name)]
        if given or self.target != "cpu":
            name = (given or ["target"])[0].replace("_", "-")
            raise UserError(
                f"Run '{self.run}' is a recurrent cell, which is exported as one step on words; leave out "
                f"--{name}."
            )
        written = export_step(self.run, self.data)
        print(
            f"{written.path}: {written.path.stat().st_size / 1e6:.2f} MB; {written.words} words of "
            "validation text"
        )
        print(
            f"largest difference of logits from torch: {written.relative_error:.1e} of the largest; "
            f"{written.complaint or 'equal'}"
        )
        return 1 if written.complaint else 0


def _row(path: Path, subject: Subject, written: Written) -> list[str]:
    """One line of the table."""
    parity, torch_accuracy = written.parity, f"{subject.reference.accuracy:.2%}"
    numbers = (
        ["-"] * 3
        if parity is None
        else [f"{parity.accuracy:.2%}", f"{parity.same_top1:.1%}", f"{parity.snr_db:.0f}"]
    )
    if written.manifest is None:
        return [path.name, "-", "-", torch_accuracy, *numbers, written.complaint]
    manifest = written.manifest
    size, took = f"{manifest.bytes / 1e6:.2f} MB", f"{manifest.milliseconds:.3g}"
    return [path.name, size, took, torch_accuracy, *numbers, _verdict(manifest)]


def _verdict(manifest: Manifest) -> str:
    """What the comparison came to."""
    if manifest.quantization is None:
        return "equal" if manifest.precision == "float32" else manifest.precision
    kept = len(manifest.quantization["float_layers"])
    return f"int8, {kept} of {manifest.quantization['layers']} layers in float32" if kept else "int8"


if __name__ == "__main__":
    main(Export)
