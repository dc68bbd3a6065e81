"""What every format of the table must do, and that a format of one's own is one class and one line of it."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import nn

from engine.command.install import install_command
from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from engine.run import Run
from export.benchmark import measure
from export.benchmark.measure import open_model_file, row_of, time_files
from export.benchmark.probe import look_into
from export.bundle.classify import SUFFIXES
from export.bundle.contents import read_bundle
from export.bundle.write import write_bundle
from export.demo.server import open_server
from export.formats import FORMATS, OTHER_RUNTIMES, find_format, format_of
from export.formats.format import Array, Format, LoadedModel, Precision, Runtime
from export.formats.format import Run as RunFile
from export.formats.onnx import damaged, first_line
from export.job import ExportJob, job_of_run
from export.manifest import exported_files, manifest_path, read_manifest
from export.pipeline import write_file
from export.source import SourceNetwork, open_export_source
from export.targets.target import Target
from export.verify import TOLERANCE, compare_file


class NumpyFormat(Format):
    """A format that nobody has: weights of the tests' network in a .npz file, and numpy runs them."""

    name = "numpy"
    suffix = ".npw"
    runtime = "numpy"
    package = "numpy"
    written_from = "module"

    def write_module(self, module: nn.Module, example: Array, path: Path, precision: Precision) -> None:
        with path.open("wb") as file:
            np.savez(file, size=example.shape[1:], **{k: v.numpy() for k, v in module.state_dict().items()})

    def open(self, path: Path, exact: bool = True) -> RunFile:
        if not path.is_file():
            raise UserError(f"There is no file '{path}'.")
        try:
            w = dict(np.load(io.BytesIO(path.read_bytes())))
        except Exception as error:
            raise UserError(damaged(path, self.runtime, first_line(error))) from None

        def run(x_NCHW: Array) -> Array:
            windows = sliding_window_view(x_NCHW, (3, 3), (2, 3))
            maps = np.einsum("nchwij,ocij->nohw", windows, w["0.weight"]) + w["0.bias"][:, None, None]
            maps = maps * np.clip(maps + 3, 0, 6) / 6
            return (maps.mean((2, 3)) @ w["4.weight"].T + w["4.bias"]).astype(np.float32)

        return run

    def load(self, path: Path, threads: int) -> LoadedModel:
        size = np.load(io.BytesIO(path.read_bytes()))["size"]
        run, image = self.open(path), np.ones((1, *size), np.float32)
        return LoadedModel(list(image.shape), {}, lambda: run(image))


MEMBERS: list[Format] = [*FORMATS, NumpyFormat()]


@pytest.fixture(params=MEMBERS, ids=[member.name for member in MEMBERS])
def member(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Format]:
    """A format whose runtime is installed; the one of this file is in the table while a test runs."""
    one: Format = request.param
    if not one.installed():
        pytest.skip(f"{one.runtime} is not installed")
    if one in FORMATS:
        yield one
        return
    FORMATS.append(one)  # the one line
    monkeypatch.setattr(measure, "probe_file", look_into)  # another process would not know this class
    yield one
    FORMATS.remove(one)


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("formats") / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("selected", "export", "report"))
    return copy


@pytest.fixture(scope="module")
def job(run: Path) -> ExportJob:
    """A small network, as if the run had it, with some of the run's images."""
    source = open_export_source(run, torch.device("cpu"))
    torch.manual_seed(0)
    channels, classes = source.data.channels, len(source.data.classes)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()
    size = source.data.size
    macs = count_macs(net, torch.zeros(1, channels, size, size))
    network = SourceNetwork(net, size, {"kind": "small"}, macs, count_parameters(net))
    return job_of_run(source, "small", network, None, 64, 0)


def target_of(member: Format, **more: Any) -> Target:
    """A target of the format: float32, or what it has instead."""
    batch = "one" if member.one_image else "any"
    more = {"precision": "float32" if "float32" in member.precisions else member.precisions[0]} | more
    more = {"name": "tested", "runs_on": "a test", "batch": batch, "why": ("a test",)} | more
    return Target(format=member.name, **more)


def tolerance(member: Format) -> float:
    """What the outputs of the file that `write` writes may differ, relative to the largest."""
    return TOLERANCE if "float32" in member.precisions else 1e-2  # float16, within 40 dB


def write(member: Format, job: ExportJob, run: Path) -> Path:
    """The job's file in the run's export folder."""
    target = target_of(member)
    path = run / "export" / target.file_name("small")
    written = write_file(job, target, path, 0.0)
    assert written.complaint == ""
    return path


@pytest.mark.slow
def test_a_file_equals_torch_and_is_described(member: Format, job: ExportJob, run: Path) -> None:
    path = write(member, job, run)
    manifest = read_manifest(path)
    assert manifest.not_run == (member.not_run_here() or None)
    if manifest.not_run is not None:
        assert (manifest.parity, manifest.accuracy) == (None, None)
        with pytest.raises(UserError, match=f"cannot be run on this machine: {manifest.not_run}"):
            member.open(path)
        return
    assert (manifest.file, manifest.target, manifest.subnet) == (path.name, "tested", "small")
    assert manifest.parity is not None and manifest.parity["relative_error"] <= tolerance(member)
    assert (manifest.milliseconds is None) == bool(member.not_timed_here())
    assert path in exported_files(path.parent)
    assert compare_file(job.reference, path).complaint(manifest.precision) == ""
    images = next(iter(job.reference.batches()))[0]
    wanted = job.reference.output_NK[: len(images)]
    run_it, scale = format_of(path).open(path), np.abs(wanted).max()
    assert np.abs(run_it(images) - wanted).max() <= tolerance(member) * scale
    assert np.abs(run_it(images[3:4]) - wanted[3:4]).max() <= tolerance(member) * scale, "one image alone"
    assert b"/tmp/" not in path.read_bytes() and b".py\x00" not in path.read_bytes()


@pytest.mark.slow
def test_every_precision_of_a_format_is_compared_as_the_file_itself(
    member: Format, job: ExportJob, run: Path
) -> None:
    images = next(iter(job.reference.batches()))[0]
    for precision in member.precisions:
        target = target_of(member, precision=precision)
        path = run / "export" / f"other-{precision}{member.suffix}"
        written = write_file(job._replace(calibration=[images]), target, path, 100.0)
        assert written.complaint == "" and written.manifest is not None
        assert written.manifest.precision == precision
        if member.not_run_here():
            continue
        assert written.parity is not None and written.parity.snr_db > 15
        # The same again in another session: what is verified does not depend on chance.
        assert compare_file(job.reference, path) == written.parity


def test_a_damaged_or_missing_file_is_one_sentence(member: Format, job: ExportJob, run: Path) -> None:
    path = write(member, job, run)
    content = path.read_bytes()
    try:
        for bad in (b"", b"hello", content[: len(content) // 2]):
            path.write_bytes(bad)
            with pytest.raises(
                UserError, match=r"^[^\n]*truncated or damaged \([^\n]*\); export it again\.$"
            ):
                member.open(path)
            with pytest.raises(UserError, match="truncated or changed"):
                read_manifest(path)
            with pytest.raises(UserError, match=r"^[^\n]*(truncated or changed|cannot be timed)[^\n]*$"):
                open_model_file("x", path, 1)
        path.unlink()
        with pytest.raises(UserError, match="There is no file"):
            member.open(path)
    finally:
        path.write_bytes(content)


def test_the_benchmark_sees_it(member: Format, job: ExportJob, run: Path) -> None:
    path = write(member, job, run)
    manifest = read_manifest(path)
    if member.not_timed_here():
        with pytest.raises(UserError, match=rf"cannot be timed on this machine: {member.not_timed_here()}"):
            open_model_file("small", path, 1)
        return
    file = open_model_file("small", path, 1)
    assert file.probe.shape == [1, *job.example.shape[1:]]
    assert file.probe.outputs == job.reference.output_NK.shape[1]
    assert manifest.accuracy is not None
    assert (file.accuracy, file.macs) == (manifest.accuracy.file, manifest.macs)
    visits: list[str] = []
    (timing,) = time_files([file], 2, 1, 0.0, visits.append)
    row = row_of(file, timing, 1)
    assert visits == ["small", "small"] and row["wall_p50"] > 0 and row["bytes"] == manifest.bytes
    assert row["runtime"].startswith(member.runtime)
    graph = member.read_graph(path)
    assert (row["nodes"] is None) == (graph is None)


def test_a_bundle_holds_all_that_belongs_to_it(
    member: Format, job: ExportJob, run: Path, tmp_path: Path
) -> None:
    path = write(member, job, run)
    folder = write_bundle(Run.open(run), "small", [path])
    names = {path.name, *(beside.name for beside in member.side_files(path))}
    found = {p.name for p in folder.iterdir()}
    prepared = {name for name in found if name.startswith(("sample", "Prepare."))}
    assert len(prepared) == 12, "8 images, what becomes of them in two files, and two languages"
    assert found - prepared == names | {"classify.py", "labels.txt", "manifest.json", "README.md"}
    described = json.loads((folder / "samples.json").read_text())["files"]
    assert (path.name in described) == (not member.not_run_here())
    assert read_bundle(folder).files[0].file == path.name
    card = (folder / "README.md").read_text()
    assert f"`{path.name}`" in card
    assert ("was not run where it was written" in card) == bool(member.not_run_here())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    words = [sys.executable, str(folder / "classify.py"), str(tmp_path / "x.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert member.in_example == (member.suffix in SUFFIXES)
    if member.in_example:
        assert len(done.stdout.splitlines()) == 5
    else:
        assert done.returncode == 1 and done.stderr.startswith("onnxruntime does not run")


def test_the_demo_answers_with_it(member: Format, job: ExportJob, run: Path) -> None:
    path = write(member, job, run)
    folder = write_bundle(Run.open(run), "small", [path])
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(content, "PNG")
    if member.not_run_here():
        with open_server(folder, 0) as server, pytest.raises(UserError, match=member.not_run_here()):
            server.classify(path.name, content.getvalue())
        return
    with open_server(folder, 0) as server:
        shares = server.classify(path.name, content.getvalue())
        assert (path.name in server.in_browser()) == member.in_browser
    assert sum(shares) == pytest.approx(1) and len(shares) == job.reference.output_NK.shape[1]


def test_an_interrupted_write_leaves_the_earlier_file(
    member: Format, job: ExportJob, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(member, job, run)
    whole = [path, manifest_path(path), *member.side_files(path)]
    before = [file.read_bytes() for file in whole]

    def interrupted(self: Format, *words: Any) -> None:
        (file,) = [word for word in words if isinstance(word, Path)]
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(member), f"write_{member.written_from}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(member, job, run)
    assert [file.read_bytes() for file in whole] == before
    assert not list(path.parent.glob(".*"))
    read_manifest(path)


def test_a_file_that_differs_is_not_kept_nor_is_an_older_one(
    member: Format, job: ExportJob, run: Path
) -> None:
    if member.not_run_here():
        pytest.skip(member.not_run_here())
    path = write(member, job, run)
    wrong = job._replace(reference=job.reference._replace(output_NK=job.reference.output_NK + 1))
    written = write_file(wrong, target_of(member), path, 0.0)
    assert written.manifest is None
    assert "differs from torch" in written.complaint or "too far from torch" in written.complaint
    assert not [file for file in (path, manifest_path(path), *member.side_files(path)) if file.exists()]


def test_what_a_format_cannot_be_is_refused(member: Format) -> None:
    for precision in ("float32", "float16", "int8"):
        if precision not in member.precisions:
            with pytest.raises(ValueError, match=f"format {member.name} cannot be {precision}"):
                target_of(member, precision=precision)
    if member.one_image:
        with pytest.raises(ValueError, match="takes one image at a time; say batch: one"):
            target_of(member, batch="any")
    if member.written_from == "module":
        with pytest.raises(ValueError, match="leave out activations"):
            target_of(member, activations="relu6")


@pytest.mark.parametrize("name", [member.name for member in FORMATS if member.extra])
def test_a_missing_runtime_is_the_command_that_installs_it(
    name: str, job: ExportJob, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = find_format(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    path = tmp_path / f"x{member.suffix}"
    path.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: write_file(job, target_of(member), path, 0.0),
        lambda: member.open(path),
        lambda: open_model_file("x", path, 1),
    ]
    assert member.extra is not None
    sentence = f"{member.runtime} is not installed; run {install_command(member.extra)}."
    for call in calls:
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            call()


@pytest.mark.parametrize("runtime", OTHER_RUNTIMES, ids=[one.runtime for one in OTHER_RUNTIMES])
def test_another_runtime_of_a_known_format_equals_torch(
    runtime: Runtime, job: ExportJob, run: Path, tmp_path: Path
) -> None:
    if not runtime.installed():
        pytest.skip(f"{runtime.runtime} is not installed")
    path = write(find_format("onnx"), job, run)
    images = next(iter(job.reference.batches()))[0]
    wanted = job.reference.output_NK[: len(images)]
    assert np.abs(runtime.open(path)(images) - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    with pytest.raises(UserError, match=r"runs \.onnx files, and '[^\n]*x\.ort' is none"):
        runtime.open(tmp_path / "x.ort")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"truncated or damaged \([^\n]*\); export it again\.$"):
        runtime.open(tmp_path / "half.onnx")


def test_what_is_not_in_the_table_is_refused_with_what_is(tmp_path: Path) -> None:
    *suffixes, last = [re.escape(member.suffix) for member in FORMATS]
    with pytest.raises(UserError, match=rf"its name must end in {', '.join(suffixes)} or {last}\.$"):
        format_of(tmp_path / "x.npw")
    names = ", ".join(sorted(member.name for member in FORMATS))
    with pytest.raises(UserError, match=f"There is no format 'xyz'; valid are: {names}"):
        find_format("xyz")
    with pytest.raises(ValueError, match=f"There is no format 'xyz'; valid are: {names}"):
        Target(name="x", runs_on="x", format="xyz", why=("x",))
    with pytest.raises(UserError, match="must end in"):
        read_manifest(tmp_path / "x.npw")
    suffixes = [member.manifest_suffix for member in FORMATS]
    assert len(set(suffixes)) == len(suffixes), (
        "files of two formats beside each other would share a manifest"
    )
    assert {".onnx", ".ort", ".pte"} <= {member.suffix for member in FORMATS}
