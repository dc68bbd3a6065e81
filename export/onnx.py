"""Write selected networks as files for devices, each proved equal to torch before it gets its name."""

import shlex
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.command.start import say
from engine.command.table import show
from engine.compute.device import pick_device
from engine.errors import UserError
from engine.statistics import format_accuracy
from export.bake import Bake, Layout
from export.features import FOLDER, check_targets, write_features
from export.formats import find_format, format_of
from export.job import ExportJob, job_of_run
from export.manifest import Manifest, Tensor, read_manifest
from export.pipeline import Written, write_file
from export.recurrent import export_step, is_language
from export.source import open_export_source
from export.targets import find_targets
from export.targets.target import Target
from ofa.trained import RunCommand, run_flag


class Export(RunCommand):
    """Write networks as ONNX, or for the runtime of a target: one file each, BatchNorm folded.

    A run of ofa.train gives subnets; one of oneshot.retrain, or one that trained an architecture alone, gives
    that network; a recurrent cell becomes a step: `tokens` and `hidden` in, `logits` and `next` out. The
    input of an ONNX file is `image`, its output `logits`. Every file is compared with the torch model on
    validation images, in the runtime that its target names, before it is kept; a file that differs is not
    kept. Where that runtime cannot run on this machine, the file is kept and says so. The exit status is 1 if
    any file fails. What a device must do with an image is in the file's metadata, where the format has some,
    and in the .json beside it.

    For 8 bits (--target cpu-int8) ranges are calibrated on training images; layers stay in float32 until no
    more than --max-drop points of top-1 are lost.

    examples:
      python -m export.onnx                              every subnet that predictors.select chose, for CPUs
      python -m export.onnx --selected 600M --target cpu-int8,qnn
      python -m export.onnx --arch largest --bake normalize --layout NHWC --softmax
      python -m export.onnx --bake preprocessing         the file takes decoded images of any size
      python -m export.onnx --features --arch largest    a backbone: outputs stride4, stride8, ...
      python -m export.onnx --selected 600M --target litert,mlpackage,qnn-sm8650
      python -m export.targets                           what targets there are, and why
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--run",
        "--selected",
        "--arch",
        "--target",
        "--images",
        "--max-drop",
        "--bake",
        "--softmax",
        "--layout",
        "--threads",
    )

    selected: str | None = Field(
        None, description="only this budget, as named in the run's selected/ folder; none: all of them"
    )
    arch: str | None = Field(
        None, description="instead: one budget, smallest, largest, a published name, a JSON file or JSON"
    )
    untuned: bool = Field(
        False, description="take the supernet's weights even of subnets that ofa.tune tuned"
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
    bake: Literal["normalize", "preprocessing"] | None = Field(
        None,
        description=(
            "what to put into the graph. normalize: the file takes uint8 pixels of the right size; "
            "preprocessing: resize and crop too, so it takes one decoded image (1, height, width, C) of any "
            "size"
        ),
    )
    layout: Layout = Field(
        "NHWC",
        description="with --bake normalize: of the pixels, as cameras (NHWC) or torch (NCHW) give them",
    )
    features: bool = Field(
        False,
        description=(
            "write the maps at strides 4, 8, 16 and 32 instead of logits, for a detector or segmenter, into "
            "export/features"
        ),
    )
    size: int | None = Field(
        None,
        ge=1,
        description="with --features: side of the input in pixels; none: as the architecture has it",
    )
    softmax: bool = Field(False, description="with --bake: the output is probabilities")

    def execute(self) -> int:
        """Write every file, print the table, and return the exit status."""
        if self.threads:
            torch.set_num_threads(self.threads)
        targets = find_targets(self.target)
        for target in targets:
            # A missing runtime is reported before anything is calibrated for a file.
            find_format(target.format).check_installed(to_write=True)
        with self.write_lock():
            return self._export(targets)

    def _export(self, targets: list[Target]) -> int:
        """Write what the run holds, by its kind."""
        if is_language(self.run):
            return self._export_recurrent_cell()
        if self.softmax and self.bake is None:
            raise UserError(
                "--softmax goes into the graph with --bake normalize; add that, or leave out --softmax."
            )
        if self.bake == "preprocessing" and (self.features or self.layout != "NHWC"):
            raise UserError(
                "--bake preprocessing is of classifiers that take images as cameras give them (NHWC); with "
                "--features or --layout NCHW, use --bake normalize."
            )
        if self.size is not None and not self.features:
            raise UserError("--size is of --features; a classifier takes images of its architecture's size.")
        if self.features:
            return self._export_features(targets)
        return self._export_classifiers(targets)

    def _export_classifiers(self, targets: list[Target]) -> int:
        """Write a file of every network for every target."""
        source = open_export_source(self.run, pick_device(self.device), self.data, self.untuned)
        networks = source.networks(self.selected, self.arch)
        bake = None
        if self.bake is not None:
            crop = source.center_crop() if self.bake == "preprocessing" else None
            bake = Bake(source.data.mean, source.data.std, self.layout, self.softmax, crop)
        quantised = any(target.is_quantized for target in targets)
        # Reading training images takes a while, so only where a target needs them.
        calibration = self.calibration_images if quantised else 0
        table = Table("file", "size", "ms here", "top-1 torch", "top-1 file", "same top-1", "dB", "verdict")
        failed = 0
        notes: list[str] = []
        kept: list[Path] = []  # the files that passed
        with progress("export", len(networks) * len(targets)) as advance:
            for name, build, _ in networks:
                job = job_of_run(source, name, build(), bake, self.images, calibration)
                # All targets of a network share its job: torch's outputs and, mostly, its exported graph.
                for target in targets:
                    path = self.run / "export" / target.file_name(name)
                    before = _input_of(path)
                    written = write_file(job, target, path, self.max_drop)
                    now = None if written.manifest is None else written.manifest.input
                    if before is not None and now is not None and now != before:
                        notes.append(f"{path.name} took {before} until now; the new file takes {now}")
                    failed += bool(written.complaint)
                    kept += [] if written.complaint else [path]
                    table.add_row(*_row(path, job, written))
                    if note := _gate_note(written):
                        notes.append(f"{path.name}: {note}; see --images and --calibration-images")
                    advance(path.name)
        show(table)
        for note in notes:
            print(note)
        print(f"written to {self.run / 'export'}")
        for name, _, note in networks:
            if note:
                print(f"{name} is {note}; --untuned takes the supernet's weights")
        print(
            f"top-1 on validation images; ms here: one image with {torch.get_num_threads()} thread(s) of "
            "this CPU"
        )
        # The benchmark times images of a fixed size only.
        timed = []
        if self.bake != "preprocessing":
            timed = [path for path in kept if not format_of(path).not_timed_here()]
        if self.arch is None and source.searchable:
            # Networks that selection chose, which is what the report is about.
            say(f"next: python -m predictors.report{run_flag(self.run)}")
        elif timed:
            say(f"next: python -m export.benchmark {shlex.quote(str(timed[0]))}")
        elif kept:
            say(f"next: python -m export.bundle{run_flag(self.run)}")
        return 1 if failed else 0

    def _export_features(self, targets: list[Target]) -> int:
        """Write the maps of every network for every target."""
        check_targets(targets)
        if self.softmax:
            raise UserError("--softmax is of logits, which --features leaves out; give one of them.")
        source = open_export_source(self.run, pick_device(self.device), self.data, self.untuned)
        bake = Bake(source.data.mean, source.data.std, self.layout) if self.bake else None
        networks = source.networks(self.selected, self.arch)
        table = Table("file", "channels by stride", "ms here", "difference", "verdict")
        failed = 0
        with progress("export", len(networks)) as advance:
            for network in networks:
                for written in write_features(source, network, targets, bake, self.images, self.size):
                    failed += bool(written.complaint)
                    channels = [f"{stride}: {count}" for stride, count in written.channels.items()]
                    took = "-" if written.milliseconds is None else f"{written.milliseconds:.3g}"
                    error, verdict = f"{written.relative_error:.1e}", written.complaint or "equal"
                    table.add_row(written.path.name, ", ".join(channels), took, error, verdict)
                advance(network.name)
        show(table)
        print(f"written to {self.run / 'export' / FOLDER}; difference: of the largest number of a map")
        return 1 if failed else 0

    def _export_recurrent_cell(self) -> int:
        """Write the step of a recurrent cell, which has one form and so no use for most flags."""
        # Refused instead of ignored: whoever gives such a flag expects an effect.
        given = [
            name
            for name in ("selected", "arch", "untuned", "bake", "features", "size", "softmax")
            if getattr(self, name)
        ]
        if given or self.target != "cpu":
            name = (given or ["target"])[0].replace("_", "-")
            raise UserError(
                f"Run '{self.run}' is a recurrent cell, which is exported as one step on words; leave out "
                f"--{name}."
            )
        written = export_step(self.run, self.data)
        if not written.complaint:
            size = written.path.stat().st_size / 1e6
            print(f"{written.path}: {size:.2f} MB; {written.words} words of validation text")
        print(
            f"largest difference of logits from torch: {written.relative_error:.1e} of the largest; "
            f"{written.complaint or 'equal'}"
        )
        return 1 if written.complaint else 0


def _input_of(path: Path) -> Tensor | None:
    """What the file takes that is there before it is written; None if nobody can say."""
    try:
        return read_manifest(path, check=False).input
    except UserError:  # there is none, or it is damaged: it will be replaced
        return None


def _row(path: Path, job: ExportJob, written: Written) -> list[str]:
    """One line of the table."""
    parity, images = written.parity, len(job.reference.labels_N)
    torch_accuracy = format_accuracy(job.reference.accuracy, images)
    numbers = ["-", "-", "-"]  # a graph that is not valid was never run
    if parity is not None:
        numbers = [
            format_accuracy(parity.accuracy, parity.images),
            f"{parity.same_top1:.1%}",
            f"{parity.snr_db:.0f}",
        ]
    manifest = written.manifest
    if manifest is None:
        return [path.name, "-", "-", torch_accuracy, *numbers, written.complaint]
    size = f"{manifest.bytes / 1e6:.2f} MB"
    took = "-" if manifest.milliseconds is None else f"{manifest.milliseconds:.3g}"
    return [path.name, size, took, torch_accuracy, *numbers, _verdict(manifest)]


def _gate_note(written: Written) -> str:
    """What the images could not tell about a quantised file; empty if there is nothing to say."""
    if written.manifest is None or written.manifest.quantization is None:
        return ""
    note: str = written.manifest.quantization["note"]
    return note


def _verdict(manifest: Manifest) -> str:
    """The verdict on a file that passed: equal to torch, or in which precision it is, and for which chip."""
    if manifest.not_run is not None:
        return f"{manifest.precision}, not run here"
    if manifest.compiled is not None:
        return f"{manifest.precision}, {manifest.compiled}"
    if manifest.quantization is None:
        return "equal" if manifest.precision == "float32" else manifest.precision
    kept, layers = len(manifest.quantization["float_layers"]), manifest.quantization["layers"]
    return f"{manifest.precision}, {kept} of {layers} layers in float32" if kept else manifest.precision


if __name__ == "__main__":
    main(Export)
