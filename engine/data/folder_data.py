"""Image files of any size: decoded and augmented in worker processes, normalised on the device."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode, v2

from engine.command.progress import progress
from engine.data.dataset import Batch, IndexedData, Split, Subset, hold_out, stream_name
from engine.data.folder import ImageFolder
from engine.errors import UserError, WorkerDied
from engine.seed import derive, numpy_generator

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESIZE_OVER_CROP = 256 / 224
CHECK_AT_MOST = 20_000  # files; decoding more of them before training starts would take minutes
CACHE_BYTES = 2 * 1024**3
Item = tuple[int, int | None]  # index of a file, and the seed of its augmentation or None for none
Listing = list[tuple[Path, int]]  # image files, each with the index of its class


class FolderData(IndexedData):
    """The images of a folder.

    Training images stream through workers. Validation and test images are decoded once and stay on the device
    if they fit in 2 GiB.
    """

    def __init__(self, config: ImageFolder, device: torch.device, seed: int):
        classes, train = _listing(config.path, "train")
        if config.name == "imagenet" and len(classes) != 1000:
            raise UserError(
                f"'{config.path}/train' has {len(classes)} classes where ImageNet has 1000; use --data.name "
                "imagefolder."
            )
        held: dict[str, Listing] = {}
        for name in ("val", "test"):
            if (config.path / name).is_dir():
                held[name] = _held_listing(config.path, name, classes)
        if not held:
            raise UserError(
                f"Data folder '{config.path}' has neither val/ nor test/; add one beside train/, with a "
                "folder for each class."
            )
        if len(held) == 1:
            # The only labelled folder beside train/ is kept for the final report, so the images that decide
            # on architectures are held out from train/.
            (test,) = held.values()
            labels = np.array([label for _, label in train])
            kept, out = hold_out(labels, config.val, numpy_generator(seed, "validation"))
            held = {"val": [train[i] for i in out], "test": test}
            train = [train[i] for i in kept]
        self.files: dict[str, Listing] = {"train": train, **held}
        _check_images([path for files in self.files.values() for path, _ in files])
        super().__init__(config, classes, IMAGENET_MEAN, IMAGENET_STD, config.size, device, seed)
        self.source = config
        self.cache: dict[tuple[str, bytes], Batch] = {}

    def count(self, split: Split) -> int:
        return len(self.files[split])

    def preprocessing(self) -> dict[str, Any]:
        return {
            "resize_shorter_side": _shorter_side(self.size),
            "center_crop": self.size,
            "resize_interpolation": "bicubic, antialiased",
        }

    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        listing = self.files["train"] + self.files["val"] if subset == "both" else self.files[subset]
        stream = stream_name(subset, "image")
        items: list[list[Item]] = []
        for batch in batches:
            # A seed an image, not a worker: what is drawn must not depend on how many workers there are.
            items.append([(int(i), derive(self.seed, *stream, epoch, int(i))) for i in batch[share]])
        yield from self._decoded(listing, items)

    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        items: list[list[Item]] = []
        for start in range(0, len(indices), batch_size):
            items.append([(int(i), None) for i in indices[start : start + batch_size]])
        streamed = self._decoded(self.files[split], items)
        if len(indices) * 3 * self.size**2 > CACHE_BYTES:
            yield from streamed
            return
        key = (split, indices.tobytes())
        if key not in self.cache:
            batches = list(streamed)
            images, labels = zip(*batches, strict=True)
            self.cache[key] = torch.cat(images), torch.cat(labels)
        x, y = self.cache[key]
        yield from zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)

    def _decoded(self, listing: Listing, items: list[list[Item]]) -> Iterator[Batch]:
        """uint8 images on the device, a batch for each list of items.

        Raises:
            UserError: an image is damaged.
            WorkerDied: a worker process ended.
        """
        workers = min(self.source.workers, len(items))
        loader = DataLoader(
            ImageFiles(listing, self.source),
            batch_sampler=items,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )
        try:
            for x, y, complaint in loader:
                if complaint:
                    raise UserError(complaint)
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerDied(
                f"A process that decodes images died ({str(error).splitlines()[0]}); run the same command "
                "again."
            ) from None


class ImageFiles(Dataset[tuple[Tensor, int, str]]):
    """Image files as uint8 tensors (3, size, size) with their class and a sentence if the file is damaged."""

    def __init__(self, listing: Listing, config: ImageFolder):
        self.listing = listing
        bicubic = InterpolationMode.BICUBIC
        crop = v2.RandomResizedCrop(
            config.size, scale=(config.crop_scale, 1.0), interpolation=bicubic, antialias=True
        )
        steps: list[Any] = [crop]
        if config.flip:
            steps.append(v2.RandomHorizontalFlip())
        if any(config.jitter):
            steps.append(v2.ColorJitter(*config.jitter))
        match config.policy:
            case "autoaugment":
                steps.append(v2.AutoAugment())
            case "randaugment":
                steps.append(v2.RandAugment())
            case "none":
                pass
        self.augment = v2.Compose([*steps, v2.PILToTensor()])
        shorter = v2.Resize(_shorter_side(config.size), bicubic, antialias=True)
        self.plain = v2.Compose([shorter, v2.CenterCrop(config.size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, item: Item) -> tuple[Tensor, int, str]:
        index, seed = item
        path, label = self.listing[index]
        try:
            image = _open(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            # A worker cannot raise a UserError that reaches the main process as one, so it returns a
            # sentence.
            return torch.empty(0, dtype=torch.uint8), label, _damaged(path, error)
        if seed is None:
            return self.plain(image), label, ""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            return self.augment(image), label, ""


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {image.mode}, not 8 bits a channel")
        return image.convert("RGB")


def _damaged(path: Path, error: Exception) -> str:
    return f"Image '{path}' cannot be used ({str(error).splitlines()[0]}); convert, repair or remove it."


def _shorter_side(crop: int) -> int:
    return round(crop * RESIZE_OVER_CROP)


def _collate(items: list[tuple[Tensor, int, str]]) -> tuple[Tensor | None, Tensor, str]:
    labels = torch.tensor([label for _, label, _ in items])
    complaint = next((text for _, _, text in items if text), "")
    if complaint:
        return None, labels, complaint
    return torch.stack([image for image, _, _ in items]), labels, ""


def _start_worker(_: int) -> None:
    # Signals to the process group, Ctrl-C among them, are for the main process, which stops after its step.
    os.setpgrp()
    torch.set_num_threads(1)


def _class_folders(folder: Path) -> list[str]:
    entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _listing(root: Path, split: str) -> tuple[list[str], Listing]:
    """The classes of a split and its files with their class index, both in sorted order."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"Data folder '{folder}' does not exist; pass --data.path with a folder that holds train/ and "
            "val/ or test/."
        )
    classes = _class_folders(folder)
    files: Listing = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        images = _images(folder / name)
        files.extend((path, label) for path in images)
        if not images:
            empty.append(name)
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class with "
            f"{', '.join(IMG_EXTENSIONS)} files."
        )
    if len(classes) < 2:
        raise UserError(
            f"Data folder '{folder}' has only one class, '{classes[0]}'; a classifier needs two or more."
        )
    if empty:
        raise UserError(f"Class folder '{folder / empty[0]}' has no images; add some or remove the folder.")
    return classes, files


def _held_listing(root: Path, split: str, classes: list[str]) -> Listing:
    """The files of a split whose classes are among those of the training images."""
    folder = root / split
    names = _class_folders(folder)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UserError(
            f"Data folder '{folder}' has class '{unknown[0]}' that '{root / 'train'}' lacks; add training "
            "images of it or remove it."
        )
    files: Listing = []
    for name in names:
        files.extend((path, classes.index(name)) for path in _images(folder / name))
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class, or be removed."
        )
    return files


def _images(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".") and path.is_file():
            found.append(path)
    return sorted(found)


def _check_images(paths: list[Path]) -> None:
    """Decode every image of a small data set once: a damaged test image is found now, not after training."""
    if len(paths) > CHECK_AT_MOST:
        return

    def fault(path: Path) -> str:
        try:
            _open(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return _damaged(path, error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("check images", len(paths)) as advance:
        for complaint in pool.map(fault, paths):
            if complaint:
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(complaint)
            advance("")
