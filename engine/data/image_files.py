"""Image files as tensors: opened, augmented and checked, in worker processes or here."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from engine.command.progress import progress
from engine.data.dataset import Interpolation
from engine.errors import UserError

CROP_SHARE = 224 / 256  # the usual evaluation on ImageNet: shorter side 256, centre of 224
CHECK_AT_MOST = 20_000  # files; decoding more of them before training starts would take minutes
NAMED = 20  # damaged files that an error names
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
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
    """Decode an image file to RGB.

    Raises:
        OSError, ValueError, DecompressionBombError: the file is damaged, or not an image of 8 bits a channel.
    """
    with Image.open(path) as image:
        # Pillow would clip 16-bit and float pixels at 255 without a word, so that most become white.
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {image.mode}, not 8 bits a channel")
        return image.convert("RGB")


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


def image_paths(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, in sorted order."""
    found = []
    for path in folder.rglob("*"):
        # Names that begin with a dot are other systems' notes beside an image, such as ._cat.jpg.
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            found.append(path)
    return sorted(found)


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
