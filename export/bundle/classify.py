"""Classify an image with a model file beside this one: python classify.py IMAGE [MODEL]. Needs onnxruntime,
numpy and pillow only."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image


def bicubic(old: int, new: int) -> Any:
    """(new, old): every new pixel as a sum of old ones; half-pixel centres, a = -0.75, edges repeated."""
    place, matrix = (np.arange(new) + 0.5) * old / new - 0.5, np.zeros((new, old))
    for tap in np.floor(place) + np.arange(-1, 3)[:, None]:
        t = np.abs(place - tap)
        weight = np.where(t <= 1, 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3)
        np.add.at(matrix, (np.arange(new), tap.clip(0, old - 1).astype(int)), weight)
    return matrix


def prepare(image: Image.Image, file: dict[str, Any]) -> Any:
    """The input, (1, C, H, W) or (1, H, W, C), of a file that manifest.json describes."""
    how, wanted, (width, height) = file["preprocessing"], file["input"], image.size
    side, short = how.get("center_crop") or how["image_size"], how.get("resize_shorter_side")
    size = tuple(short * edge // min(width, height) if short else side for edge in (width, height))
    left, top = (round((edge - side) / 2) for edge in size)
    image = image.convert("RGB" if how["channels"] == "RGB" else "L").resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), float).reshape(side, side, -1)
    x = bicubic(side, how["resize"][0]) @ np.tensordot(bicubic(side, how["resize"][0]), pixels, 1)
    x = x.round().clip(0, 255) if wanted["dtype"] == "uint8" else (x / 255 - how["mean"]) / how["std"]
    return np.ascontiguousarray(x if wanted["layout"] == "NHWC" else x.transpose(2, 0, 1), wanted["dtype"])[
        None
    ]


def classify(image: Image.Image, file: dict[str, Any], session: ort.InferenceSession) -> Any:
    """Probabilities of the classes."""
    scores = session.run([file["output"]["name"]], {file["input"]["name"]: prepare(image, file)})[0][
        0
    ].astype(float)
    powers = np.exp(scores - scores.max())
    return scores if file["output"]["name"] == "probabilities" else powers / powers.sum()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(__file__).resolve().parent
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    file = next(f for f in files if sys.argv[2:] in ([], [f["file"]]))
    session = ort.InferenceSession(str(folder / file["file"]), providers=["CPUExecutionProvider"])
    chances = classify(Image.open(sys.argv[1]), file, session)
    for i in np.argsort(-chances)[:5]:
        print(f"{chances[i]:7.2%}  {file['classes'][i]}")
