"""Golden samples of a bundle: images, what every step of their preparation makes of them, and the outputs.

A program on a device that gets the same numbers prepares images as training did. samples.json says where in
samples.bin each array lies: raw numbers, little-endian, rows first, which every language reads without a
library.
"""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.data.image_files import DAMAGED, ORIENTATION, ImageListing, damaged_image, open_image
from engine.errors import UserError
from engine.run import write_json
from export.bundle.classify import SAMPLES, steps_of
from export.formats import format_of
from export.formats.format import Array, Run
from export.manifest import Manifest

COUNT = 8
DATA = "samples.bin"
LYING = 6  # the EXIF orientation of a picture that was taken upright with a phone
# Levels of 8 bits, and for `normalise` numbers of the input, by which another device may differ in one step.
# JPEG decoders may differ by some levels, resizes by their rounding.
ALLOWED = {"decode": 4.0, "resize": 1.0, "crop": 0.0, "batch": 0.0, "normalise": 1e-3}
PIXEL = 1.0  # for `normalise` of a file that takes pixels
# Shares of the largest output. 8-bit kernels round in other places, which moves a number to the next level.
ALLOWED_OUTPUT = {"float32": 1e-3, "float16": 2e-2}
LOOSEST = 5e-2


def write_samples(folder: Path, files: list[Manifest], source: Path | None = None) -> None:
    """Write the samples of a bundle beside its model files.

    Args:
        folder: of the bundle, with the model files in it.
        files: their manifests.
        source: a folder with images to take; none: images are drawn. A bundle goes to others, and images of
            the training data might be nobody's business.

    Raises:
        UserError: the folder has fewer images than a bundle has samples, or a damaged one.
    """
    names = _draw(folder, _side(files[0])) if source is None else _copy(folder, source)
    data = _Data()
    described: dict[str, Any] = {}
    for file in files:
        run = _runs_like(folder, file, files)
        if run is not None:
            described[file.file] = _describe(folder, file, run, names, data)
    (folder / DATA).write_bytes(data.content.getvalue())
    write_json(folder / SAMPLES, {"data": DATA, "images": names, "files": described})


class _Data:
    """The arrays of samples.bin. One that is there already is not stored again.

    Files for several targets take the same images, so most steps have the same result for all of them.
    """

    def __init__(self) -> None:
        self.content, self.known = io.BytesIO(), dict[bytes, int]()

    def add(self, array: Array) -> dict[str, Any]:
        """Store an array; returns where it lies."""
        values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        key = hashlib.sha256(values.tobytes()).digest()
        if key not in self.known:
            self.known[key] = self.content.tell()
            self.content.write(values.tobytes())
        return {"offset": self.known[key], "dtype": array.dtype.name, "shape": list(array.shape)}


def _runs_like(folder: Path, file: Manifest, files: list[Manifest]) -> Run | None:
    """What runs a file here or, where its runtime is none of this machine, another that takes the same input.

    On its device a Core ML package should give what the .onnx file gives here.
    """
    alike = [file]
    for other in files:
        if _in_and_out(other) == _in_and_out(file):
            alike.append(other)
    for candidate in alike:
        file_format = format_of(Path(candidate.file))
        if file_format.installed() and not file_format.not_run_here():
            return file_format.open(folder / candidate.file)
    return None


def _in_and_out(file: Manifest) -> tuple[Any, ...]:
    """What one image is for a file, and what its output means."""
    # Without the first axis: one file takes any number of images, another one.
    return file.input.dtype, file.input.layout, file.input.shape[1:], file.preprocessing, file.output.name


def _describe(folder: Path, file: Manifest, run: Run, names: list[str], data: _Data) -> dict[str, Any]:
    """What becomes of each sample on its way through a file."""
    kind = file.input.dtype, file.input.layout
    if kind[0] not in ("float32", "uint8") or kind[1] not in ("NCHW", "NHWC"):
        raise UserError(
            f"'{file.file}' takes an input of the kind {kind[0]}, {kind[1]}, which classify.py cannot "
            "prepare; export it again."
        )
    facts = file.model_dump(mode="json")
    steps = steps_of(facts)
    samples = []
    for name in names:
        with Image.open(folder / name) as image:
            x: Any = image
            found = {}
            for step, compute in steps.items():
                x = compute(x, facts)
                found[step] = data.add(x)
        found["output"] = data.add(run(x))
        samples.append(found)
    allowed = {step: ALLOWED[step] for step in steps}
    allowed["output"] = ALLOWED_OUTPUT.get(file.precision, LOOSEST)
    if "normalise" in allowed and file.input.dtype == "uint8":
        allowed["normalise"] = PIXEL
    return {"tolerance": allowed, "samples": samples}


def _side(file: Manifest) -> int:
    """The side of the data set's images in pixels."""
    how = file.preprocessing or {}
    return int(how.get("center_crop") or how["image_size"])


def _copy(folder: Path, source: Path) -> list[str]:
    """Copy the first images of a folder, in the order of their names; returns the new names."""
    if not source.is_dir():
        raise UserError(f"There is no folder '{source}' of images; --samples names one.")
    paths = ImageListing().list_images(source)[:COUNT]
    if len(paths) < COUNT:
        raise UserError(f"Folder '{source}' has {len(paths)} images, but a bundle has {COUNT} samples.")
    names = []
    for i, path in enumerate(paths, start=1):
        try:
            open_image(path)
        except DAMAGED as error:
            raise UserError(damaged_image(path, error)) from None
        names.append(f"sample{i}{path.suffix.lower()}")
        shutil.copyfile(path, folder / names[-1])
    return names


def _draw(folder: Path, side: int) -> list[str]:
    """Draw one image of each kind that programs get wrong; returns their names.

    Args:
        folder: where to write them.
        side: of the data set's images; the samples are larger and smaller than that.
    """
    # Shapes in pixels as they are to be seen; twice the side, so that the resize has something to average.
    wide, tall = (max(4, 3 * side // 2), 2 * side), (2 * side, max(4, 3 * side // 2))
    kinds: list[tuple[str, tuple[int, int]]] = [
        ("RGB", wide),
        ("lying", tall),
        ("L", wide),
        ("I;16", tall),
        ("RGBA", wide),
        ("P", (side + 3, side + 8)),
        ("RGB", (max(4, side // 2), max(4, 2 * side // 3))),
        ("RGB", (side, 4 * side)),
    ]
    names = []
    for i, (kind, shape) in enumerate(kinds, start=1):
        pixels = _scene(shape, np.random.default_rng(i))
        names.append(f"sample{i}.jpg" if i <= 2 else f"sample{i}.png")
        _save(pixels, kind, folder / names[-1])
    return names


def _scene(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A picture (H, W, 3) of a coloured sky, discs with sharp edges, and the grain of a sensor."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width] / max(shape)
    # A gradient that is another one in each direction and channel shows every turn and swapped channels.
    colours = rng.uniform(40, 215, (3, 3))
    picture = (
        colours[0] + y[:, :, None] * (colours[1] - colours[0]) + x[:, :, None] * (colours[2] - colours[0])
    )
    for _ in range(6):
        (row, column), radius = rng.uniform(0, 1, 2) * shape / max(shape), rng.uniform(0.05, 0.25)
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        picture[inside] = rng.uniform(0, 255, 3)
    grained = picture + rng.normal(0, 6, picture.shape)
    return grained.round().clip(0, 255).astype(np.uint8)


def _save(pixels: Array, kind: str, path: Path) -> None:
    """Save a scene as an image of one kind."""
    image = Image.fromarray(pixels)
    if kind == "lying":
        exif = Image.Exif()
        exif[ORIENTATION] = LYING
        # Stored as the sensor lay: the tag turns it back.
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    elif kind == "I;16":
        # The lower bits are no zeros, as a program might scale them instead of cutting them off.
        gray = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(gray * 256 + gray[::-1] % 256).save(path)
    elif kind == "RGBA":
        image.putalpha(image.convert("L"))
        image.save(path)
    elif path.suffix == ".jpg":
        image.save(path, quality=95)
    else:
        image.convert(kind).save(path)
