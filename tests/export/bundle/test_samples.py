"""A copy of a bundle proves itself: classify.py --check finds the first step that differs, and whatever is
wrong with an image, a model or the folder ends in a sentence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import UserError
from engine.run import Run
from export.bundle.classify import prepare_image
from export.bundle.contents import read_bundle
from export.bundle.languages import write_snippets
from export.bundle.samples import write_samples
from export.bundle.write import write_bundle
from export.formats.ort import OrtFormat
from export.manifest import Manifest


@pytest.fixture
def folder(bundled_run: Path, tmp_path: Path) -> Path:
    """A copy of the bundle `60k`."""
    return Path(shutil.copytree(bundled_run / "export" / "60k", tmp_path / "60k"))


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(folder / "classify.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def change(folder: Path, old: str, new: str) -> None:
    """Change a line of the copy's classify.py."""
    path = folder / "classify.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["60k", "largest"])
def test_a_copy_is_as_bundled(bundled_run: Path, name: str) -> None:
    done = run(bundled_run / "export" / name, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(read_bundle(bundled_run / "export" / name).files)
    for line in lines:
        assert "as bundled; largest differences: decode 0, resize 0, crop 0, normalise 0, output" in line


# What programs get wrong, and the step that must be named for it.
MISTAKES = {
    "turned as the camera lay": (
        "turned = image if turn is None else image.transpose(turn)",
        "turned = image",
        "decode",
    ),
    "another resize": (
        "(side, side), resample)",
        "(side, side), Image.Resampling.BILINEAR)",
        "resize",
    ),
    "another place": ("image.crop((left, top,", "image.transpose(0).crop((left, top,", "crop"),
    "no rounding": ("x = x.round().clip(0, 255)", "x = x.clip(0, 9)", "normalise"),
    "another resize of the network": ("t = np.abs(place - tap)", "t = np.abs(place - tap) / 2", "normalise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_first_step_that_differs_is_named(bundled_run: Path, tmp_path: Path, mistake: str) -> None:
    old, new, step = MISTAKES[mistake]
    # The network of `largest` has another side than its images.
    copy = Path(shutil.copytree(bundled_run / "export" / "largest", tmp_path / "largest"))
    change(copy, old, new)
    done = run(copy, "--check", "largest.onnx")
    assert done.returncode == 1 and f"differs first at {step}: " in done.stdout


@pytest.mark.slow
def test_a_changed_model_and_changed_numbers_are_found(folder: Path) -> None:
    content = json.loads((folder / "samples.json").read_text())
    last = content["files"]["60k.onnx"]["samples"][-1]["output"]["offset"]
    numbers = bytearray((folder / "samples.bin").read_bytes())
    numbers[last + 3] ^= 0x40  # the exponent of the first output of the last sample
    (folder / "samples.bin").write_bytes(numbers)
    done = run(folder, "--check", "60k.onnx")
    assert done.returncode == 1 and "sample8.png differs first at output" in done.stdout
    model = bytearray((folder / "60k.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "60k.onnx").write_bytes(model)
    assert (
        "60k.onnx: is missing, or is not the file that was bundled"
        in run(folder, "--check", "60k.onnx").stdout
    )
    (folder / "samples.json").unlink()
    assert "samples.json is missing or damaged" in run(folder, "--check", "60k.mobile.ort").stderr


def test_the_samples_are_described_for_programs_in_any_language(bundled_run: Path) -> None:
    """Every array lies whole in samples.bin, and the inputs are those that the files take."""
    folder = bundled_run / "export" / "60k"
    known, size = json.loads((folder / "samples.json").read_text()), (folder / "samples.bin").stat().st_size
    assert len(known["images"]) == 8 and set(known["files"]) == {"60k.onnx", "60k.mobile.ort"}
    manifest = {file.file: file for file in read_bundle(folder).files}
    for name, of_file in known["files"].items():
        assert len(of_file["samples"]) == 8
        for steps in of_file["samples"]:
            assert list(steps) == ["decode", "resize", "crop", "normalise", "output"]
            for array in steps.values():
                bytes_each = {"uint8": 1, "float32": 4}[array["dtype"]]
                assert array["offset"] + int(np.prod(array["shape"])) * bytes_each <= size
            assert steps["normalise"]["shape"][1:] == list(manifest[name].input.shape[1:])
    shapes = {tuple(steps["decode"]["shape"][:2]) for steps in known["files"]["60k.onnx"]["samples"]}
    # Digits are 8 x 8. The second sample is stored lying down, and is decoded upright.
    assert (12, 16) in shapes and (16, 12) in shapes
    with Image.open(folder / "sample2.jpg") as image:
        assert image.size == (16, 12) and image.getexif()[274] == 6


def test_images_of_ones_own_become_samples(bundled_run: Path, tmp_path: Path) -> None:
    files = list(read_bundle(bundled_run / "export" / "60k").files)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(8):
        Image.new("RGB", (20 + i, 30), (i, 2 * i, 3 * i)).save(photos / f"photo{i}.png")
    target = Path(shutil.copytree(bundled_run / "export" / "60k", tmp_path / "bundle"))
    write_samples(target, files, photos)
    known: dict[str, Any] = json.loads((target / "samples.json").read_text())
    assert known["files"]["60k.onnx"]["samples"][7]["decode"]["shape"] == [30, 27, 1]
    (photos / "photo3.png").unlink()
    with pytest.raises(UserError, match="has 7 images, but a bundle has 8 samples"):
        write_samples(target, files, photos)
    with pytest.raises(UserError, match="There is no folder"):
        write_bundle(Run.open(bundled_run), "60k", [bundled_run / "export" / "60k.onnx"], tmp_path / "none")


WRONG_IMAGES = {
    "missing.png": "There is no image",
    "photo.heic": "is no image that Pillow can read; phones write such files, so save it as JPEG",
    "text.png": "is no image that Pillow can read",
    "cut.png": "cannot be classified",
    "broken.png": "cannot be classified",
    "float.tiff": "its pixels are F, not 8 or 16 bits a channel",
    "line.png": "too long and narrow",
}


def write_wrong_images(folder: Path) -> None:
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (folder / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:500])
    (folder / "broken.png").write_bytes(content[:400] + bytes(16) + content[416:])
    Image.new("F", (9, 9)).save(folder / "float.tiff")
    Image.new("L", (900, 2)).save(folder / "line.png")


@pytest.mark.slow
def test_whatever_is_wrong_ends_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    write_wrong_images(tmp_path)
    for name, sentence in WRONG_IMAGES.items():
        done = run(folder, str(tmp_path / name))
        assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr, (
            name,
            done,
        )
    whole = str(tmp_path / "whole.png")
    assert "onnxruntime does not run 'other.onnx'; it runs: " in run(folder, whole, "other.onnx").stderr
    (folder / "60k.onnx").write_bytes((folder / "60k.onnx").read_bytes()[:999])
    done = run(folder, whole, "60k.onnx")
    assert "'60k.onnx' is missing, damaged or not for this onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr
    (folder / "manifest.json").write_text("{")
    assert "manifest.json beside classify.py is missing or damaged" in run(folder, whole).stderr


@pytest.mark.slow
def test_an_image_of_16_bits_is_classified_as_that_of_8(folder: Path, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert run(folder, str(tmp_path / "8.png")).stdout == run(folder, str(tmp_path / "16.png")).stdout != ""


KOTLIN_CHECK = """
import java.io.File
import javax.imageio.ImageIO

fun main(args: Array<String>) {
    for (name in args) {
        val image = ImageIO.read(File(name))
        val w = image.width
        val h = image.height
        val argb = image.getRGB(0, 0, w, h, null, 0, w)
        val cropped = with(cropped.Prepare) { normalise(crop(resize(decode(w, h, argb)))) }
        println(cropped.joinToString(" "))
        val enlarged = with(enlarged.Prepare) { normalise(crop(resize(decode(w, h, argb)))) }
        println(enlarged.joinToString(" "))
    }
}
"""
# How images are prepared, and what the model takes.
KOTLIN_CASES = {
    "cropped": (
        {
            "resize_shorter_side": 37,
            "center_crop": 32,
            "resize_interpolation": "bilinear",
            "resize": [24, 24],
        },
        {"dtype": "uint8", "layout": "NHWC"},
    ),
    "enlarged": (
        {
            "resize_shorter_side": 27,
            "center_crop": 24,
            "resize_interpolation": "bicubic",
            "resize": [40, 40],
        },
        {"dtype": "float32", "layout": "NCHW"},
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kotlinc") is None, reason="kotlinc is not installed")
def test_kotlin_prepares_images_as_python_does(bundled_run: Path, tmp_path: Path) -> None:
    facts = read_bundle(bundled_run / "export" / "60k").files[0].model_dump(mode="json")
    numbers = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "channels": "RGB"}
    cases = {}
    for name, (how, taken) in KOTLIN_CASES.items():
        cases[name] = facts | {"preprocessing": how | numbers, "input": facts["input"] | taken}
        (tmp_path / name).mkdir()
        write_snippets(tmp_path / name, [Manifest.model_validate(cases[name])])
        # A package for each, so that both are compiled at once: the compiler is slow to start.
        source = tmp_path / name / "Prepare.kt"
        source.write_text(f"package {name}\n{source.read_text()}")
    (tmp_path / "Check.kt").write_text(KOTLIN_CHECK)
    images = []
    for i, shape in enumerate([(53, 37, 3), (30, 41, 3), (9, 200, 3)]):
        pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append(str(tmp_path / f"{i}.png"))
    sources = [str(path) for path in (tmp_path / "Check.kt", *tmp_path.glob("*/Prepare.kt"))]
    quick = os.environ | {"JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}  # to start, not to run
    compiler = ["kotlinc", *sources, "-d", str(tmp_path / "out")]
    subprocess.run(compiler, check=True, capture_output=True, env=quick)
    command = ["kotlin", "-cp", str(tmp_path / "out"), "CheckKt", *images]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=quick)
    pairs = [(path, name) for path in images for name in cases]
    for (path, name), line in zip(pairs, done.stdout.splitlines(), strict=True):
        with Image.open(path) as image:
            ready = prepare_image(image, cases[name])
        found = np.array([float(word) for word in line.split()]).reshape(ready.shape)
        np.testing.assert_allclose(found, ready, atol=1e-5 if name == "enlarged" else 0)


def test_a_file_that_does_not_run_here_has_the_outputs_of_one_that_does(
    bundled_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundled_run / "export" / "60k", tmp_path / "60k"))
    monkeypatch.setattr(OrtFormat, "not_run_here", lambda _: "a phone runs it")
    write_samples(folder, list(read_bundle(folder).files))
    known = json.loads((folder / "samples.json").read_text())["files"]
    assert known["60k.mobile.ort"]["samples"] == known["60k.onnx"]["samples"]
