"""Classify an image with a model file beside this one: python classify.py IMAGE [MODEL]. Needs onnxruntime,
numpy and pillow only."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

SUFFIXES = (".onnx", ".ort")  # what onnxruntime reads
LONGEST = 100  # times the shorter side: a line of pixels, resized, would fill the memory
# Phones store pictures as the sensor lay, and in a tag of EXIF how to turn them.
ORIENTATION = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The image as it is to be seen, with 8 bits a channel; the same as in training."""
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"its sides are {image.width} x {image.height} pixels, which is too long and narrow")
    image.load()  # of TIFF files Pillow turns the pixels itself when it reads them, and drops the tag
    turn = None
    # Pillow has no common class for what a damaged tag raises. The pixels beside it are in order.
    with contextlib.suppress(Exception):
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    turned = image if turn is None else image.transpose(turn)
    # Pillow would clip pixels of 16 bits at 255, so that most become white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are {image.mode}, not 8 or 16 bits a channel")
    return turned


def bicubic(old: int, new: int) -> Any:
    """(new, old): every new pixel as a sum of old ones; half-pixel centres, a = -0.75, edges repeated."""
    place, matrix = (np.arange(new) + 0.5) * old / new - 0.5, np.zeros((new, old))
    # Four old pixels around each place. Taps outside of the image count for the pixel at its edge, so weights
    # are added where several taps fall on one pixel.
    for tap in np.floor(place) + np.arange(-1, 3)[:, None]:
        t = np.abs(place - tap)
        weight = np.where(t <= 1, 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3)
        np.add.at(matrix, (np.arange(new), tap.clip(0, old - 1).astype(int)), weight)
    return matrix


def prepare_image(image: Image.Image, file: dict[str, Any]) -> Any:
    """The input of a file that manifest.json describes: (1, C, H, W) or (1, H, W, C)."""
    image = upright(image)
    how, wanted, (width, height) = file["preprocessing"], file["input"], image.size
    # 1. The data set's own resize and crop, by Pillow: to `side` x `side` pixels.
    side, short = how.get("center_crop") or how["image_size"], how.get("resize_shorter_side")
    size, resample = (side, side), Image.Resampling.BICUBIC
    if short:
        resample = Image.Resampling[how["resize_interpolation"].split(",")[0].upper()]
        size = (short * width // min(width, height), short * height // min(width, height))
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    image = image.convert("RGB" if how["channels"] == "RGB" else "L").resize(size, resample)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), float).reshape(side, side, -1)
    # 2. torch's resize to the network's side, rows first.
    matrix = bicubic(side, how["resize"][0])
    x = matrix @ np.tensordot(matrix, pixels, 1)
    # 3. Numbers as the file takes them.
    pixels = x.round().clip(0, 255)
    x = pixels if wanted["dtype"] == "uint8" else (x / 255 - how["mean"]) / how["std"]
    if wanted["layout"] == "NCHW":
        x = x.transpose(2, 0, 1)
    return np.ascontiguousarray(x, wanted["dtype"])[None]


def classify(image: Image.Image, file: dict[str, Any], run: Callable[[Any], Any]) -> Any:
    """Probabilities of the classes (K,). run: from the file's input (1, ...) to its output (1, K)."""
    scores = run(prepare_image(image, file))[0].astype(float)
    if file["output"]["name"] == "probabilities":
        return scores
    powers = np.exp(scores - scores.max())  # softmax; without the maximum exp might overflow
    return powers / powers.sum()


def main(folder: Path, image: str, names: list[str]) -> None:
    """Print the five likeliest classes."""
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    known = {file["file"]: file for file in files if Path(file["file"]).suffix in SUFFIXES}
    if not known:
        sys.exit("onnxruntime does not run a file of this folder; README.md says what does.")
    name = names[0] if names else next(iter(known))
    if name not in known:
        sys.exit(f"onnxruntime does not run '{name}'; it runs: {', '.join(known)}.")
    file = known[name]
    session = ort.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])

    def run(x: Any) -> Any:
        return session.run([file["output"]["name"]], {file["input"]["name"]: x})[0]

    try:
        shares = classify(Image.open(image), file, run)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"'{image}' cannot be classified: {error}")
    for i in np.argsort(-shares)[:5]:
        print(f"{shares[i]:7.2%}  {file['classes'][i]}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(__file__).resolve().parent, sys.argv[1], sys.argv[2:])
