"""A folder of image files of any size, with a folder for each class; worker processes decode the files."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.config import Located, are, counted
from engine.data.balance import Ints
from engine.data.dataset import (
    SPLITS,
    Batch,
    Data,
    ImageSource,
    IndexedData,
    Interpolation,
    Split,
    Subset,
    stream_name,
)
from engine.data.decoding import Decoder
from engine.data.image_files import (
    CROP_SHARE,
    EXTENSIONS,
    ImageListing,
    Item,
    Listing,
    Transforms,
    check_image_files,
)
from engine.data.split import describe_hold_out, hold_out
from engine.errors import UserError
from engine.seed import derive, numpy_generator

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CACHE_BYTES = 2 * 1024**3  # most bytes of decoded pixels that are kept on the device, for each set of images
NAMED = 5  # classes that a note names
# Images that a worker hands over at once. A batch of an evaluation may be 1024, and several of them wait in
# shared memory, of which a container has little.
PART = 64
HELD = ("val", "test")  # folders that may stand beside train/
Share = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]


class ImageFolder(ImageSource):
    """A folder with train/<class>/* and val/<class>/* or test/<class>/*, or with <class>/* alone.

    Classes and image sizes may be any.
    """

    name: Literal["imagefolder", "imagenet"]
    path: Located = Field(
        description="folder that holds train/ and val/ or test/; or class folders, which are split here"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="fraction of the images that is held out for test, if there is no train/"
    )
    size: int = Field(224, ge=8, description="side of the square crop in pixels")
    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "share of an image's shorter side that the centre crop keeps, in evaluation; none: as the "
            "weights want, else 0.875"
        ),
    )
    interpolation: Interpolation | None = Field(
        None, description="how images are resized; none: as the weights want, else bicubic"
    )
    crop_scale: float = Field(
        0.08, gt=0, le=1, description="least share of the image that a random crop covers"
    )
    flip: bool = Field(True, description="random horizontal flip")
    policy: Literal["none", "autoaugment", "randaugment"] = Field(
        "none", description="torchvision's augmentation policy"
    )
    jitter: tuple[Share, Share, Share, Hue] = Field(
        (0, 0, 0, 0),
        description=(
            "random changes of brightness, contrast and saturation, up to this share, and of hue, up to "
            "this turn"
        ),
    )
    workers: int = Field(2, ge=0, description="processes that decode images")

    def load(self, device: torch.device, seed: int) -> Data:
        """List and check the files."""
        return FolderData(self, device, seed)


class FolderData(IndexedData):
    """The images of a folder.

    Training images stream through workers. Validation and test images are decoded once and stay on the device
    if they fit in 2 GiB.
    """

    def __init__(self, config: ImageFolder, device: torch.device, seed: int):
        notes: list[str] = []
        images = ImageListing()
        if any((config.path / name).is_dir() for name in SPLITS):
            classes, train, held = _read_splits(config.path, images, notes)
        else:
            classes, train, held = _split_flat(config, images, notes)
        notes += images.notes()
        if config.name == "imagenet" and len(classes) != 1000:
            raise UserError(
                f"'{config.path}' has {len(classes)} classes where ImageNet has 1000; use --data.name "
                "imagefolder."
            )
        # Other readers of folders, torchvision's too, sort as text: 0, 1, 10, 2.
        if classes != sorted(classes):
            notes.append(f"classes are in numeric order: {classes[0]}, {classes[1]}, ..., {classes[-1]}")
        if "val" not in held:
            rng = numpy_generator(seed, "validation")
            train, held["val"] = _hold_out(classes, train, config.val, rng, "validation", notes)
        self.files: dict[str, Listing] = {"train": train, **held}
        # Before training starts, which may take hours until it meets a damaged file.
        check_image_files([path for files in self.files.values() for path, _ in files])
        super().__init__(config, classes, IMAGENET_MEAN, IMAGENET_STD, config.size, device, seed)
        self.notes += notes
        self.workers = config.workers
        self.crop_share: float = config.crop_share or CROP_SHARE
        self.interpolation: Interpolation = config.interpolation or "bicubic"
        # The side in pixels to which the shorter side is resized before the centre is cut out.
        self.shorter = round(config.size / self.crop_share)
        self.transforms = Transforms(
            config.size,
            self.shorter,
            self.interpolation,
            config.crop_scale,
            config.flip,
            config.jitter,
            config.policy,
        )
        self.cache: dict[tuple[str, bytes], Batch] = {}
        self._decoders: dict[Subset, Decoder] = {}

    def count(self, split: Split) -> int:
        return len(self.files[split])

    def labels(self, subset: Subset) -> Ints:
        return np.array([label for _, label in self._listing(subset)])

    def _listing(self, subset: Subset) -> Listing:
        return self.files["train"] + self.files["val"] if subset == "both" else self.files[subset]

    def preprocessing(self) -> dict[str, Any]:
        return {
            "resize_shorter_side": self.shorter,
            "center_crop": self.size,
            "crop_share": self.crop_share,
            "resize_interpolation": f"{self.interpolation}, antialiased",
        }

    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        stream = stream_name(subset, "image")
        items: list[list[Item]] = []
        places = range(share.start, share.stop)
        for step, batch in enumerate(batches, start=skip):
            items.append([])
            for place, i in zip(places, batch[share].tolist(), strict=True):
                # An epoch of the sampler may show an image several times, each time augmented differently.
                showing = (step, place) if self.config.balance == "sampler" else ()
                # A seed an image, not a worker: what is drawn must not depend on how many workers there are.
                items[-1].append((i, derive(self.seed, *stream, epoch, i, *showing)))
        yield from self._decoder(subset).batches(items)

    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        streamed = self._streamed(split, indices, batch_size)
        if len(indices) * 3 * self.size**2 > CACHE_BYTES:
            yield from streamed
            return
        # By the indices, since calibration reads only a part of a split, always the same one.
        key = (split, indices.tobytes())
        if key not in self.cache:
            batches = list(streamed)
            images, labels = zip(*batches, strict=True)
            self.cache[key] = torch.cat(images), torch.cat(labels)
        x, y = self.cache[key]
        yield from zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)

    def _streamed(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """The batches of `_plain`, decoded as they are asked for."""
        parts: list[list[Item]] = []
        counts: list[int] = []  # how many of these parts make each batch
        for start in range(0, len(indices), batch_size):
            batch: list[Item] = [(int(i), None) for i in indices[start : start + batch_size]]
            parts += [batch[place : place + PART] for place in range(0, len(batch), PART)]
            counts.append(-(-len(batch) // PART))
        decoder = Decoder(self.files[split], self.transforms, self.device, self.workers, False)
        decoded = decoder.batches(parts)
        for count in counts:
            images, labels = zip(*itertools.islice(decoded, count), strict=True)
            yield torch.cat(images), torch.cat(labels)

    def _decoder(self, subset: Subset) -> Decoder:
        """What decodes the training images of a subset; its workers stay from epoch to epoch."""
        if subset not in self._decoders:
            listing = self._listing(subset)
            self._decoders[subset] = Decoder(listing, self.transforms, self.device, self.workers, True)
        return self._decoders[subset]


def _class_folders(folder: Path) -> list[str]:
    """The class folders in order: numbers by their value, so that label 10 is class 10; others as text."""
    names = []
    for entry in os.scandir(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            names.append(entry.name)
    # Two orders would be worse than either one. A run keeps its classes in model.json, and is refused if the
    # folder's are in another order.
    if all(name.isdecimal() for name in names):
        return sorted(names, key=_by_value)
    return sorted(names)


def _by_value(name: str) -> tuple[int, str]:
    return int(name), name


def _read_splits(
    root: Path, images: ImageListing, notes: list[str]
) -> tuple[list[str], Listing, dict[str, Listing]]:
    """The classes, the training images, and those of `test` and perhaps `val`, as the folders divide them."""
    classes, train = _listing(
        root / "train", images, "pass --data.path with a folder that holds train/ and val/ or test/"
    )
    held: dict[str, Listing] = {}
    for name in HELD:  # a folder of data has one of them or both
        if (root / name).is_dir():
            held[name] = _held_listing(root, name, classes, images, notes)
    if not held:
        raise UserError(
            f"Data folder '{root}' has neither val/ nor test/; add one beside train/, with a folder for each "
            "class, or move the class folders out of train/ to have them split."
        )
    if "test" not in held:
        # The only labelled folder beside train/ is kept for the final report, so the images that decide on
        # architectures are held out from train/.
        held["test"] = held.pop("val")
        notes.append(
            f"'{root / 'val'}' serves as test images, which decide nothing, since there is no test/; "
            "validation images are held out from train/. Beside a folder test/, val/ is used for validation"
        )
    return classes, train, held


def _split_flat(
    config: ImageFolder, images: ImageListing, notes: list[str]
) -> tuple[list[str], Listing, dict[str, Listing]]:
    """The classes, and the images of class folders without test images, and those test images."""
    root = config.path
    classes, files = _listing(
        root, images, "pass --data.path with a folder that holds a folder for each class"
    )
    # Not by the seed of the run: results of different seeds are compared on the same test images.
    rng = np.random.default_rng(derive(0, "folder test split"))
    notes.append(
        f"'{root}' has no train/, so its images are split here: {config.test:.0%} of each class for test "
        f"(--data.test), {config.val:.0%} of the others for validation (--data.val)"
    )
    train, test = _hold_out(classes, files, config.test, rng, "test", notes)
    return classes, train, {"test": test}


def _hold_out(
    classes: list[str],
    files: Listing,
    fraction: float,
    rng: np.random.Generator,
    purpose: str,
    notes: list[str],
) -> tuple[Listing, Listing]:
    """The files that stay and those that are held out; `notes` gets what small classes make of it."""
    labels = np.array([label for _, label in files])
    kept, out = hold_out(labels, fraction, rng)
    notes += describe_hold_out(classes, labels, out, fraction, purpose)
    return [files[i] for i in kept], [files[i] for i in out]


def _listing(folder: Path, images: ImageListing, remedy: str) -> tuple[list[str], Listing]:
    """The classes in a folder and its files with their class index, both in order."""
    if not folder.is_dir():
        raise UserError(f"Data folder '{folder}' does not exist; {remedy}.")
    classes = _class_folders(folder)
    files: Listing = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        paths = images.list_images(folder / name)
        files.extend((path, label) for path in paths)
        if not paths:
            empty.append(name)
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class with "
            f"{', '.join(EXTENSIONS)} files{_left_out(images, folder)}."
        )
    if len(classes) < 2:
        raise UserError(
            f"Data folder '{folder}' has only one class, '{classes[0]}'; a classifier needs two or more."
        )
    if empty:
        first = folder / empty[0]
        raise UserError(
            f"Class folder '{first}' has no images{_left_out(images, first)}; add some or remove the folder."
        )
    return classes, files


def _left_out(images: ImageListing, folder: Path) -> str:
    """Half a sentence on the files of a folder that were left out; empty if none was."""
    for reason, paths in images.skipped.items():
        inside = [path for path in paths if path.is_relative_to(folder)]
        if inside:
            number = f"{counted(len(inside), 'file')} {are(len(inside))}"
            return f" ({number} left out, such as '{inside[0].name}': {reason})"
    return ""


def _held_listing(
    root: Path, split: str, classes: list[str], images: ImageListing, notes: list[str]
) -> Listing:
    """The files of val/ or test/, with the class index that train/ gives them.

    The split may lack classes of train/, but has no others.
    """
    folder = root / split
    names = _class_folders(folder)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UserError(
            f"Data folder '{folder}' has class '{unknown[0]}' that '{root / 'train'}' lacks; add training "
            "images of it or remove it."
        )
    files: Listing = []
    labels = {name: label for label, name in enumerate(classes)}
    missing = [name for name in classes if name not in names]
    for name in names:
        paths = images.list_images(folder / name)
        files.extend((path, labels[name]) for path in paths)
        if not paths:
            missing.append(name)
    # Accuracy there says nothing about these classes.
    if missing and files:
        named = ", ".join(f"'{name}'" for name in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        notes.append(f"'{folder}' has no images of {named}{more}")
    if not files:
        raise UserError(
            f"Data folder '{folder}' has no images; it must hold a folder for each class, or be removed."
        )
    return files
