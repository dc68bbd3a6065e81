"""Image folders of any size: decoded and augmented in worker processes, normalised on the device."""

import os
import signal
import threading
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
from engine.data.load import Batch, Data, ImageFolder, Split, Subset, check_held, hold_out, of
from engine.errors import UserError, WorkerDied
from engine.seed import derive, numpy_generator

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESIZE_OVER_CROP = 256 / 224
CHECK_AT_MOST = 20_000
CACHE_BYTES = 2 * 1024**3
Item = tuple[int, int | None]


class FolderData(Data):
    """Training images stream through workers; validation and test images are decoded once and kept on the
    device if they fit in 2 GiB."""

    def __init__(self, config: ImageFolder, device: torch.device, seed: int):
        classes, train = _listing(config.path, "train")
        if config.name == "imagenet" and len(classes) != 1000:
            raise UserError(
                f"'{config.path}/train' has {len(classes)} classes where ImageNet has 1000; use --data.name "
                "imagefolder."
            )
        held = {
            name: _held_listing(config.path, name, classes)
            for name in ("val", "test")
            if (config.path / name).is_dir()
        }
        if not held:
            raise UserError(
                f"Data folder '{config.path}' has neither val/ nor test/; add one beside train/, with a "
                "folder for each class."
            )
        if (
            len(held) == 1
        ):  # the only labelled folder beside train/ is the final report's; decisions need images of their own
            (test,) = held.values()
            kept, out = hold_out(
                np.array([label for _, label in train]), config.val, numpy_generator(seed, "validation")
            )
            check_held(len(out))
            held = {"val": [train[i] for i in out], "test": test}
            train = [train[i] for i in kept]
        self.files: dict[str, list[tuple[Path, int]]] = {"train": train, **held}
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
        files = Files(
            self.files["train"] + self.files["val"] if subset == "both" else self.files[subset], self.source
        )
        stream = of(subset, "image")
        items: list[list[Item]] = [
            [(int(i), derive(self.seed, *stream, epoch, int(i))) for i in batch[share]] for batch in batches
        ]
        yield from self._load(files, items)

    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        items: list[list[Item]] = [
            [(int(i), None) for i in indices[start : start + batch_size]]
            for start in range(0, len(indices), batch_size)
        ]
        streamed = self._load(Files(self.files[split], self.source), items)
        if len(indices) * 3 * self.size**2 > CACHE_BYTES:
            yield from streamed
            return
        key = (split, indices.tobytes())
        if key not in self.cache:
            batches = list(streamed)
            self.cache[key] = (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
        x, y = self.cache[key]
        for start in range(0, len(y), batch_size):
            yield x[start : start + batch_size], y[start : start + batch_size]

    def _load(self, files: "Files", items: list[list[Item]]) -> Iterator[Batch]:
        workers = min(self.source.workers, len(items))
        loader = DataLoader(
            files,
            batch_sampler=items,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )
        batches: Iterator[Any] | None = None
        while True:
            try:
                if batches is None:
                    batches = iter(loader)
                    _notice_in_next_only()
                x, y, complaint = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise WorkerDied(
                    f"A process that decodes images died ({str(error).splitlines()[0]}); run the same "
                    "command again."
                ) from None
            if complaint:
                raise UserError(complaint)
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class Files(Dataset[tuple[Tensor, int, str]]):
    """Image files as uint8 tensors (3, size, size); an item is (index, seed), and seed None means no
    augmentation."""

    def __init__(self, files: list[tuple[Path, int]], config: ImageFolder):
        self.files = files
        policy: list[Any] = {
            "none": [],
            "autoaugment": [v2.AutoAugment()],
            "randaugment": [v2.RandAugment()],
        }[config.policy]
        flip = [v2.RandomHorizontalFlip()] if config.flip else []
        jitter = [v2.ColorJitter(*config.jitter)] if any(config.jitter) else []
        bicubic = InterpolationMode.BICUBIC
        crop = v2.RandomResizedCrop(
            config.size, scale=(config.crop_scale, 1.0), interpolation=bicubic, antialias=True
        )
        self.augment = v2.Compose([crop, *flip, *jitter, *policy, v2.PILToTensor()])
        shorter = _shorter_side(config.size)
        self.plain = v2.Compose(
            [v2.Resize(shorter, bicubic, antialias=True), v2.CenterCrop(config.size), v2.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: Item) -> tuple[Tensor, int, str]:
        index, seed = item
        path, label = self.files[index]
        try:
            image = _open(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return torch.empty(0, dtype=torch.uint8), label, _corrupt(path, error)
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


def _corrupt(path: Path, error: Exception) -> str:
    return f"Image '{path}' cannot be used ({str(error).splitlines()[0]}); convert, repair or remove it."


def _shorter_side(crop: int) -> int:
    return round(crop * RESIZE_OVER_CROP)


def _collate(items: list[tuple[Tensor, int, str]]) -> tuple[Tensor | None, Tensor, str]:
    complaint = next((text for _, _, text in items if text), "")
    images = None if complaint else torch.stack([image for image, _, _ in items])
    return images, torch.tensor([label for _, label, _ in items]), complaint


def _notice_in_next_only() -> None:
    """torch raises wherever the main process is when a worker dies, be it in the middle of an update; `next`
    notices it, too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _start_worker(_: int) -> None:
    # signals to the group, Ctrl-C among them, are for the main process, which stops after its step
    os.setpgrp()
    torch.set_num_threads(1)


def _listing(root: Path, split: str) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes of a split and its files with their class index, both in sorted order."""
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"Data folder '{folder}' does not exist; pass --data.path with a folder that holds train/ and "
            "val/ or test/."
        )
    classes = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class with "
            f"{', '.join(IMG_EXTENSIONS)} files."
        )
    if len(classes) < 2:
        raise UserError(
            f"Data folder '{folder}' has only one class, '{classes[0]}'; a classifier needs two or more."
        )
    empty = set(range(len(classes))) - {label for _, label in files}
    if empty:
        raise UserError(
            f"Class folder '{folder / classes[min(empty)]}' has no images; add some or remove the folder."
        )
    return classes, files


def _held_listing(root: Path, split: str, classes: list[str]) -> list[tuple[Path, int]]:
    folder = root / split
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UserError(
            f"Data folder '{folder}' has class '{unknown[0]}' that '{root / 'train'}' lacks; add training "
            "images of it or remove it."
        )
    files = [(path, classes.index(name)) for name in names for path in _images(folder / name)]
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class, or be removed."
        )
    return files


def _images(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMG_EXTENSIONS and not p.name.startswith(".") and p.is_file()
    )


def _check_images(paths: list[Path]) -> None:
    """Decode every image of a small data set once: a damaged test image is found now, not after training."""
    if len(paths) > CHECK_AT_MOST:
        return

    def fault(path: Path) -> str:
        try:
            _open(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return _corrupt(path, error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("check images", len(paths)) as advance:
        for complaint in pool.map(fault, paths):
            if complaint:
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(complaint)
            advance("")
