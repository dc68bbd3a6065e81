"""Image files as tensors: opened, augmented and checked, in worker processes or here."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor
from torch.utils.data import Dataset

from engine.command.progress import progress
from engine.config import are, counted
from engine.data.dataset import Interpolation
from engine.errors import UserError

CROP_SHARE = 224 / 256  # the usual evaluation on ImageNet: shorter side 256, centre of 224
CHECK_AT_MOST = 20_000  # files; decoding more of them before training starts would take minutes
NAMED = 20  # damaged files that an error names
EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Pillow reads AVIF where it was built with the library for it.
if features.check("avif"):
    EXTENSIONS += (".avif",)
# Images that phones and cameras write, and others that Pillow cannot read or that are no photographs.
NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".gif", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")
LONGEST = 100  # times the shorter side; the widest panoramas have 20
ORIENTATION = 274  # the EXIF tag that says how to turn the stored pixels
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGED = (OSError, ValueError, Image.DecompressionBombError)  # what Pillow raises for files it cannot use
Item = tuple[int, int | None]  # index of a file, and the seed of its augmentation or None for none
Listing = list[tuple[Path, int]]  # image files, each with the index of its class


class Transforms:
    """How an image file becomes a tensor: `augment` in training, `plain` elsewhere.

    Args:
        size: side of the square crop in pixels.
        shorter: side in pixels to which `plain` resizes the shorter side before it cuts out the centre.
        interpolation: of all resizing.
        crop_scale: least share of the image that a random crop covers.
        flip: mirror half of the images.
        jitter: largest change of brightness, contrast, saturation and hue.
        policy: torchvision's augmentation policy: none, autoaugment or randaugment.
    """

    def __init__(
        self,
        size: int,
        shorter: int,
        interpolation: Interpolation,
        crop_scale: float,
        flip: bool,
        jitter: tuple[float, float, float, float],
        policy: str,
    ):
        # Imported here: torchvision's transforms take a second or two, which other sources need not wait for.
        from torchvision.transforms import InterpolationMode, v2

        mode = InterpolationMode(interpolation)
        steps: list[Any] = [
            v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), interpolation=mode, antialias=True)
        ]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if any(jitter):
            steps.append(v2.ColorJitter(*jitter))
        if policy != "none":
            steps.append({"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment}[policy]())
        self.augment = v2.Compose([*steps, v2.PILToTensor()])
        resize = v2.Resize(shorter, mode, antialias=True)
        self.plain = v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])


class ImageFiles(Dataset[tuple[Tensor, int, str]]):
    """Files as uint8 tensors (3, size, size), with their class and a sentence if the file is damaged."""

    def __init__(self, listing: Listing, transforms: Transforms):
        self.listing, self.transforms = listing, transforms

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, item: Item) -> tuple[Tensor, int, str]:
        index, seed = item
        path, label = self.listing[index]
        try:
            image = open_image(path)
        except DAMAGED as error:
            # An error that a worker raises reaches the main process as another error, with a traceback in its
            # text. A sentence arrives as it is.
            return torch.empty(0, dtype=torch.uint8), label, damaged_image(path, error)
        if seed is None:
            return self.transforms.plain(image), label, ""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            return self.transforms.augment(image), label, ""


def open_image(path: Path) -> Image.Image:
    """Decode an image file to RGB, turned as it is to be seen.

    Raises:
        OSError, ValueError, DecompressionBombError: the file is damaged, is not an image of 8 or 16 bits a
            channel, or is far longer than wide.
    """
    with Image.open(path) as image:
        return upright(image).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image as it is to be seen, with 8 bits a channel.

    classify.py of a bundle, which stands alone, has a copy of this function.

    Raises:
        ValueError: its pixels are of another kind, or it is far longer than wide.
    """
    # Resized by its shorter side, a line of pixels would become an image of gigabytes.
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"its sides are {image.width} x {image.height} pixels, which is too long and narrow")
    image.load()  # of TIFF files Pillow turns the pixels itself when it reads them, and drops the tag
    turn = TURNS.get(_orientation(image))
    turned = image if turn is None else image.transpose(turn)
    # Pillow would clip pixels of 16 bits at 255, so that most become white. The upper 8 bits are what it
    # keeps of colour images of 16 bits, too.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are {image.mode}, not 8 or 16 bits a channel")
    return turned


def _orientation(image: Image.Image) -> int:
    """How the camera says that the image lies; 1, upright, if it says nothing that can be read."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:
        # Pillow has no common class for what a damaged note raises. The pixels beside it are in order.
        return 1


def damaged_image(path: Path, error: Exception) -> str:
    """A sentence about a file that cannot be used."""
    return f"Image '{path}' cannot be used ({_reason(path, error)}); convert, repair or remove it."


def _reason(path: Path, error: Exception) -> str:
    """What Pillow says, without the name of the file, which stands before it already."""
    return str(error).splitlines()[0].replace(f" {str(path)!r}", "")


def collate(items: list[tuple[Tensor, int, str]]) -> tuple[Tensor | None, Tensor, str]:
    """A batch: images, classes, and a sentence instead of the images if one of them is damaged."""
    labels = torch.tensor([label for _, label, _ in items])
    complaint = next((text for _, _, text in items if text), "")
    if complaint:
        return None, labels, complaint
    return torch.stack([image for image, _, _ in items]), labels, ""


def start_worker(_: int) -> None:
    """Prepare a worker process."""
    # Signals to the process group, Ctrl-C among them, are for the main process, which stops after its step.
    # Out of the group rather than ignoring signals: ignoring them could hang the exit.
    os.setpgrp()
    torch.set_num_threads(1)  # workers are processes, one for a core; threads in each would be in their way


class ImageListing:
    """Lists the image files of folders, and counts what it leaves out, by kind.

    skipped: the files that were left out, by the kind and the reason, as in a sentence.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, list[Path]] = {}

    def list_images(self, folder: Path) -> list[Path]:
        """The image files in a folder and the folders in it, in sorted order."""
        found = []
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            reason = reason_to_skip(path)
            if reason is None:
                found.append(path)
            else:
                self.skipped.setdefault(reason, []).append(path)
        return found

    def notes(self) -> list[str]:
        """A sentence about each kind of files that were left out."""
        found = []
        for reason, paths in self.skipped.items():
            number = f"{counted(len(paths), 'file')} {are(len(paths))}"
            found.append(f"{number} left out, such as '{paths[0]}': {reason}")
        return found


def reason_to_skip(path: Path) -> str | None:
    """Why a file of a data folder is no image that is read; None if it is one."""
    suffix = path.suffix.lower()
    # Other systems' notes beside an image, such as ._cat.jpg.
    if path.name.startswith("."):
        return "a name that begins with a dot hides a file"
    if suffix in EXTENSIONS:
        return None
    if suffix in NOT_READ:
        return f"{suffix} images cannot be read here; convert them to .jpg or .png"
    return f"a name that ends in '{suffix}' is not that of an image" if suffix else "the name has no ending"


def check_image_files(paths: list[Path]) -> None:
    """Decode every image of a small data set once: a damaged test image is found now, not after training.

    Raises:
        UserError: images are damaged; it names all of them, up to a number.
    """
    if len(paths) > CHECK_AT_MOST:
        return

    def fault(path: Path) -> Exception | None:
        try:
            open_image(path)
        except DAMAGED as error:
            return error
        return None

    found: list[tuple[Path, Exception]] = []
    # Threads suffice: Pillow decodes outside of Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("check images", len(paths)) as advance:
        for path, error in zip(paths, pool.map(fault, paths), strict=True):
            if error:
                found.append((path, error))
            advance(f"{len(found)} damaged" if found else "")
    if len(found) == 1:
        raise UserError(damaged_image(*found[0]))
    # All at once, since whoever mends one a try waits for all the others each time.
    if found:
        named = ", ".join(f"'{path}' ({_reason(path, error)})" for path, error in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise UserError(f"{len(found)} images cannot be used: {named}{more}; convert, repair or remove them.")
