"""Classify an image with a model file beside this one, or check a copy of this folder.

    python classify.py IMAGE [MODEL]
    python classify.py --check [MODEL ...]

Needs onnxruntime, numpy and pillow only. --check prepares the samples of this folder again, runs the models
on them, and names the first step whose numbers are not those that were bundled.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime as ort
    from PIL import Image, UnidentifiedImageError
except ImportError as missing:
    sys.exit(f"{missing}; python -m pip install onnxruntime numpy pillow")

SAMPLES = "samples.json"
SUFFIXES = (".onnx", ".ort")  # what onnxruntime reads
HEIF = (".heic", ".heif", ".avif")  # what phones write and Pillow does not read without more packages
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


def as_image(pixels: Any) -> Image.Image:
    """Pixels (H, W, 3) as a colour image, (H, W, 1) as a gray one."""
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def as_pixels(image: Image.Image) -> Any:
    """The pixels (H, W, C) of an image of 8 bits."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def decode(image: Image.Image, file: dict[str, Any]) -> Any:
    """Step 1: pixels (H, W, C) of 8 bits, turned as the image is to be seen; C is 3, or 1 for gray."""
    return as_pixels(upright(image).convert("RGB" if file["preprocessing"]["channels"] == "RGB" else "L"))


def resize(pixels: Any, file: dict[str, Any]) -> Any:
    """Step 2: the data set's own resize, by Pillow, antialiased: pixels (h, w, C) of 8 bits."""
    how, image = file["preprocessing"], as_image(pixels)
    short, shorter = how.get("resize_shorter_side"), min(image.size)
    resample = Image.Resampling[how.get("resize_interpolation", "bicubic").split(",")[0].upper()]
    if not short:
        side = how.get("center_crop") or how["image_size"]
        return as_pixels(image.resize((side, side), resample))
    size = (short * image.width // shorter, short * image.height // shorter)
    return as_pixels(image.resize(size, resample))


def crop(pixels: Any, file: dict[str, Any]) -> Any:
    """Step 3: the middle, as large as the data set's images: pixels (side, side, C) of 8 bits."""
    how, image = file["preprocessing"], as_image(pixels)
    side = how.get("center_crop") or how["image_size"]
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return as_pixels(image.crop((left, top, left + side, top + side)))


def normalise(pixels: Any, file: dict[str, Any]) -> Any:
    """Step 4: numbers as the file takes them, at the network's side: (1, C, H, W) or (1, H, W, C)."""
    how, wanted, x = file["preprocessing"], file["input"], pixels.astype(float)
    # torch's resize to the network's side, rows first.
    if how["resize"][0] != len(pixels):
        matrix = bicubic(len(pixels), how["resize"][0])
        x = matrix @ np.tensordot(matrix, x, 1)
    x = x.round().clip(0, 255) if wanted["dtype"] == "uint8" else (x / 255 - how["mean"]) / how["std"]
    if wanted["layout"] == "NCHW":
        x = x.transpose(2, 0, 1)
    return np.ascontiguousarray(x, wanted["dtype"])[None]


def whole(pixels: Any, file: dict[str, Any]) -> Any:
    """The decoded image as the input (1, H, W, C) of a file that does all other steps itself."""
    return np.ascontiguousarray(pixels, file["input"]["dtype"])[None]


Step = Callable[[Any, dict[str, Any]], Any]


def steps_of(file: dict[str, Any]) -> dict[str, Step]:
    """What becomes of an image until it is the input of a file, by name and in order."""
    if file["preprocessing"].get("baked") == "preprocessing":
        return {"decode": decode, "batch": whole}
    return {"decode": decode, "resize": resize, "crop": crop, "normalise": normalise}


def prepare_image(image: Image.Image, file: dict[str, Any]) -> Any:
    """The input of a file that manifest.json describes: (1, C, H, W) or (1, H, W, C)."""
    x: Any = image
    for step in steps_of(file).values():
        x = step(x, file)
    return x


def classify(image: Image.Image, file: dict[str, Any], run: Callable[[Any], Any]) -> Any:
    """Probabilities of the classes (K,). run: from the file's input (1, ...) to its output (1, K)."""
    scores = run(prepare_image(image, file))[0].astype(float)
    if file["output"]["name"] == "probabilities":
        return scores
    powers = np.exp(scores - scores.max())  # softmax; without the maximum exp might overflow
    return powers / powers.sum()


def open_model(folder: Path, file: dict[str, Any]) -> Callable[[Any], Any]:
    """A function from the input of a model file to its output."""
    path, options = folder / file["file"], ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said in one sentence
    # Without this, x86 CPUs that have no VNNI saturate sums of 8-bit products; no other device does.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = None
    reason = ""
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
        # Some versions refuse exact sums of some 8-bit networks. Unoptimised they compute in float32.
        options.graph_optimization_level = level
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            break
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            reason = reason or str(error).splitlines()[0]
    if session is None:
        sys.exit(f"'{path.name}' is missing, damaged or not for this onnxruntime; copy it again ({reason}).")

    def run(x: Any) -> Any:
        return session.run([file["output"]["name"]], {file["input"]["name"]: x})[0]

    return run


def open_image(path: Path) -> Image.Image:
    """An image file, read whole. What is wrong with it ends the program with a sentence."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except FileNotFoundError:
        sys.exit(f"There is no image '{path}'.")
    except UnidentifiedImageError:
        more = "; phones write such files, so save it as JPEG" if path.suffix.lower() in HEIF else ""
        sys.exit(f"'{path}' is no image that Pillow can read{more}.")
    except Exception as error:  # damaged files raise errors of many kinds, SyntaxError among them
        sys.exit(f"'{path}' cannot be classified: {error}")


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays; infinite where their shapes differ or a number is none."""
    if found.shape != wanted.shape:
        return float("inf")
    largest = float(np.abs(found.astype(float) - wanted.astype(float)).max())
    return largest if largest == largest else float("inf")


def differences(
    folder: Path, file: dict[str, Any], run: Callable[[Any], Any]
) -> Iterator[tuple[str, str, float, float]]:
    """(image, step, difference, what is allowed) of every sample and step.

    Every step starts from the bundled result of the one before, so that the first that differs is the one to
    look into. Differences of the output are shares of its largest number.
    """
    known = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
    content, allowed = (folder / known["data"]).read_bytes(), known["files"][file["file"]]["tolerance"]

    def bundled(where: dict[str, Any]) -> Any:
        count = int(np.prod(where["shape"]))
        return np.frombuffer(content, where["dtype"], count, where["offset"]).reshape(where["shape"])

    for name, tensors in zip(known["images"], known["files"][file["file"]]["samples"], strict=True):
        x: Any = open_image(folder / name)
        for step, compute in steps_of(file).items():
            wanted = bundled(tensors[step])
            yield name, step, difference(compute(x, file), wanted), allowed[step]
            x = wanted
        wanted = bundled(tensors["output"])
        yield name, "output", difference(run(x), wanted) / float(np.abs(wanted).max()), allowed["output"]


def check(folder: Path, file: dict[str, Any]) -> bool:
    """Whether a model file and the preparation of its images compute what was bundled; prints it."""
    name, path = file["file"], folder / file["file"]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
        print(f"{name}: is missing, or is not the file that was bundled (SHA-256 differs); copy it again.")
        return False
    largest: dict[str, float] = {}
    for image, step, found, allowed in differences(folder, file, open_model(folder, file)):
        if found > allowed:
            how = f"by {found:.3g}, where {allowed:g} is allowed"
            if found == float("inf"):
                how = "it has another shape, or a number that is none"
            print(f"{name}: {image} differs first at {step}: {how}.")
            return False
        largest[step] = max(found, largest.get(step, 0.0))
    print(f"{name}: as bundled; largest differences: {', '.join(f'{k} {v:.2g}' for k, v in largest.items())}")
    return True


def read_files(folder: Path) -> dict[str, Any]:
    """The model files of the folder that onnxruntime runs, by name, as manifest.json describes them."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        known = {file["file"]: file for file in files if Path(file["file"]).suffix in SUFFIXES}
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"manifest.json beside classify.py is missing or damaged ({error}); copy the folder again.")
    if not known:
        sys.exit("onnxruntime does not run a file of this folder; README.md says what does.")
    return known


def main(folder: Path, words: list[str]) -> None:
    """Print the five likeliest classes of an image, or what the check found."""
    known, checking = read_files(folder), words[0] == "--check"
    names = words[1:] or (list(known) if checking else [next(iter(known))])
    for name in names:
        if name not in known:
            sys.exit(f"onnxruntime does not run '{name}'; it runs: {', '.join(known)}.")
    if checking:
        try:
            good = [check(folder, known[name]) for name in names]
        except (OSError, ValueError, LookupError) as error:
            sys.exit(f"{SAMPLES} is missing or damaged ({error}); copy the folder again.")
        sys.exit(0 if all(good) else 1)
    image, file = Path(words[0]), known[names[0]]
    picture = open_image(image)
    try:
        shares = classify(picture, file, open_model(folder, file))
    except Exception as error:  # of Pillow, for pixels of unknown kinds, or of onnxruntime
        sys.exit(f"'{image}' cannot be classified: {str(error).splitlines()[0]}")
    for i in np.argsort(-shares)[:5]:
        print(f"{shares[i]:7.2%}  {file['classes'][i]}")


if __name__ == "__main__":
    if (
        len(sys.argv) < 2
        or (len(sys.argv) > 3 and sys.argv[1] != "--check")
        or sys.argv[1] in ("-h", "--help")
    ):
        sys.exit(__doc__)
    main(Path(__file__).resolve().parent, sys.argv[1:])
