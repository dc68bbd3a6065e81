"""Images as three splits: `train` to learn weights, `val` to decide on architectures, `test` only for final
reports.

Every source keeps the same promises: the validation split is held out from training by seed and class; what
is drawn in epoch e depends on (seed, e) alone, so a resumed run sees what an uninterrupted one sees; pixels
travel as uint8 and are normalised on the device.
"""

import pickle
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from sklearn.datasets import load_digits
from torch import Tensor

from engine.compute.distributed import ALONE, Ranks
from engine.config import Config
from engine.data.augment import cutout, mixup, random_crop, random_flip
from engine.errors import UserError
from engine.seed import derive, numpy_generator, torch_generator

Located = Annotated[
    Path, AfterValidator(lambda path: path.expanduser().absolute())
]  # a run is read from other folders, too
Share = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Subset = Literal[
    "train", "val", "both"
]  # what is trained on; an architecture search trains on the validation split, too
Batch = tuple[Tensor, Tensor]
Arrays = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


class _Source(Config):
    val: float = Field(0.2, gt=0, lt=1, description="fraction of the training images held out for validation")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")


class _ArraySource(_Source):
    crop: int = Field(4, ge=0, description="random crop: pixels of padding; 0: none")
    flip: bool = Field(True, description="random horizontal flip")
    cutout: int = Field(
        0, ge=0, description="side of the square that cutout fills with the mean colour; 0: none"
    )


class Digits(_ArraySource):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, embedded; 539 of them, always the same, are the test
    split."""

    name: Literal["digits"] = "digits"
    val: float = Field(0.4, gt=0, lt=1, description="fraction of the training images held out for validation")
    crop: int = Field(1, ge=0, description="random crop: pixels of padding; 0: none")
    flip: bool = Field(False, description="random horizontal flip")


class Npz(_ArraySource):
    """An .npz file with x_train, x_test: uint8 (N, H, W) or (N, H, W, C); y_train, y_test: integers;
    optionally classes."""

    name: Literal["npz"]
    path: Located = Field(description="the .npz file")


class Torchvision(_ArraySource):
    """A data set that torchvision reads from a folder."""

    name: Literal["cifar10", "cifar100", "fashion_mnist"]
    path: Located = Field(
        Path("data"), validate_default=True, description="folder that holds it, or receives the download"
    )
    download: bool = Field(False, description="download it if it is not there")


class ImageFolder(_Source):
    """A folder with train/<class>/* and val/<class>/* or test/<class>/*; any classes, any sizes."""

    name: Literal["imagefolder", "imagenet"]
    path: Located = Field(description="folder that holds train/ and val/ or test/")
    size: int = Field(224, ge=8, description="side of the square crop in pixels")
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


DataConfig = Annotated[Digits | Npz | Torchvision | ImageFolder, Field(discriminator="name")]


class Data(ABC):
    """Three splits of images on their way to `device`. Batches are (x_NCHW float32 channels_last, y),
    normalised."""

    def __init__(
        self,
        config: _Source,
        classes: list[str],
        mean: list[float],
        std: list[float],
        size: int,
        device: torch.device,
        seed: int,
    ):
        self.config, self.classes, self.size, self.device, self.seed = config, classes, size, device, seed
        self.mean, self.std = mean, std
        self.channels = len(mean)
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]

    @abstractmethod
    def count(self, split: Split) -> int:
        """Images in `split`."""

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How an image file becomes the square that the network's own resize expects."""

    @abstractmethod
    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        """The `share` of each of the given index batches: uint8 images of `subset`, augmented; `skip` batches
        came before."""

    @abstractmethod
    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """uint8 images of `split` at `indices`, as they are."""

    def size_of(self, subset: Subset) -> int:
        """Images in `subset`."""
        return self.count("train") + self.count("val") if subset == "both" else self.count(subset)

    def steps(self, batch_size: int, subset: Subset = "train") -> int:
        """Batches in an epoch; the last, incomplete one is left out.

        Raises:
            UserError: there are fewer images than one batch.
        """
        images = self.size_of(subset)
        if batch_size > images:
            what = "validation" if subset == "val" else "training"
            raise UserError(
                f"A batch of {batch_size} images is more than the {images} {what} images; lower --batch-size."
            )
        return images // batch_size

    def train_batches(
        self, batch_size: int, epoch: int, skip: int = 0, ranks: Ranks = ALONE, subset: Subset = "train"
    ) -> Iterator[Batch]:
        """The augmented batches of `epoch` from batch `skip` on. With mixup, y is (N, K) probabilities; else
        (N,) classes.

        Each of several ranks gets its share of every batch. Joined they are, image for image, what one
        process gets, but for mixup: an image is blended with one of the same rank.
        """
        order = numpy_generator(self.seed, *of(subset, "order"), epoch).permutation(self.size_of(subset))
        batches = [
            order[i * batch_size : (i + 1) * batch_size] for i in range(self.steps(batch_size, subset))
        ]
        for step, (x, y) in enumerate(
            self._augmented(subset, epoch, batches[skip:], skip, ranks.share(batch_size)), start=skip
        ):
            x = self.normalise(x)
            if self.config.mixup > 0:
                y_NK = torch.nn.functional.one_hot(y, len(self.classes)).float()
                x, y = mixup(
                    x,
                    y_NK,
                    self.config.mixup,
                    numpy_generator(ranks.seed(self.seed), *of(subset, "mixup"), epoch, step),
                )
            yield x, y

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Plain batches of a split in an order that the seed fixes; of its first `limit` images, if given.

        The order matters: sources list images class by class, and BatchNorm calibrated on batches of one or
        two classes costs several points of accuracy.
        """
        indices = numpy_generator(self.seed, "plain", split).permutation(self.count(split))[:limit]
        for x, y in self._plain(split, indices, batch_size):
            yield self.normalise(x), y

    def normalise(self, x_NCHW: Tensor) -> Tensor:
        """uint8 to float32, less the mean, over the deviation, channels_last."""
        x = x_NCHW.to(memory_format=torch.channels_last).float() / 255
        return (x - self._mean) / self._std


def of(subset: Subset, purpose: str) -> tuple[str, ...]:
    """The name of a random stream: the training images' is the bare purpose."""
    return (purpose,) if subset == "train" else (purpose, subset)


class ArrayData(Data):
    """Small images that live on the device as one uint8 tensor a split; augmentation is batched there."""

    def __init__(
        self, config: _ArraySource, arrays: Arrays, classes: list[str], device: torch.device, seed: int
    ):
        """arrays: per split, images uint8 (N, H, W, C) and classes int64 (N,)."""
        x_train = arrays["train"][0]
        mean, std = x_train.mean((0, 1, 2)) / 255, x_train.std((0, 1, 2)) / 255
        super().__init__(
            config, classes, mean.tolist(), np.maximum(std, 1e-3).tolist(), x_train.shape[1], device, seed
        )
        self.augment = config
        self._fill = (self._mean * 255).round().to(torch.uint8)
        self.splits = {
            name: (torch.from_numpy(x).to(device).permute(0, 3, 1, 2), torch.from_numpy(y).to(device))
            for name, (x, y) in arrays.items()
        }
        self._both: Batch | None = None

    def count(self, split: Split) -> int:
        return len(self.splits[split][1])

    def preprocessing(self) -> dict[str, Any]:
        return {"image_size": self.size}

    def _images(self, subset: Subset) -> Batch:
        if subset != "both":
            return self.splits[subset]
        if self._both is None:
            pairs = zip(self.splits["train"], self.splits["val"], strict=True)
            images, labels = (torch.cat(pair) for pair in pairs)
            self._both = images, labels
        return self._both

    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        """Every rank augments the whole batch: a draw is that of one process, and costs little beside a
        step."""
        images, labels = self._images(subset)
        if not batches:
            return
        order_SB = torch.from_numpy(np.stack(batches)).to(
            self.device
        )  # once an epoch: a copy in each step would wait for the device
        for step, where in enumerate(order_SB, start=skip):
            generator = torch_generator(self.device, self.seed, *of(subset, "augment"), epoch, step)
            x = images[where]
            if self.augment.crop:
                x = random_crop(x, self.augment.crop, generator)
            if self.augment.flip:
                x = random_flip(x, generator)
            if self.augment.cutout:
                x = cutout(x, self.augment.cutout, generator, self._fill)
            yield x[share], labels[where[share]]

    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        images, labels = self.splits[split]
        everything = torch.from_numpy(indices).to(self.device)
        for start in range(0, len(everything), batch_size):
            where = everything[start : start + batch_size]
            yield images[where], labels[where]


def load_data(config: DataConfig, device: torch.device, seed: int) -> Data:
    """The three splits that `config` names.

    Raises:
        UserError: the data is missing, damaged or does not fit; one sentence.
    """
    match config:
        case Digits():
            return _array_data(config, *_digits(), device, seed)
        case Npz():
            return _array_data(config, *_npz(config.path), device, seed)
        case Torchvision():
            return _array_data(config, *_torchvision(config), device, seed)
        case ImageFolder():
            from engine.data.folder import FolderData

            return FolderData(config, device, seed)


def hold_out(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that stay and indices held out: `fraction` of each class, at least one of each that has two or
    more."""
    held = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        wanted = max(1, round(fraction * len(members)))
        held.append(members[: min(wanted, len(members) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _array_data(
    config: _ArraySource, arrays: Arrays, classes: list[str], device: torch.device, seed: int
) -> Data:
    x, y = arrays["train"]
    kept, held = hold_out(y, config.val, numpy_generator(seed, "validation"))
    check_held(len(held))
    return ArrayData(
        config,
        {"train": (x[kept], y[kept]), "val": (x[held], y[held]), "test": arrays["test"]},
        classes,
        device,
        seed,
    )


def check_held(count: int) -> None:
    """Refuse a validation split without images."""
    if count == 0:
        raise UserError(
            "No class has two or more training images, so none can be held out for validation; add images."
        )


def _digits() -> tuple[Arrays, list[str]]:
    bunch = load_digits()
    images = np.round(bunch.images / 16 * 255).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train, test = hold_out(labels, 0.3, np.random.default_rng(derive(0, "digits test split")))
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}, [
        str(d) for d in range(10)
    ]


def _npz(path: Path) -> tuple[Arrays, list[str]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            found = {name: members[name] for name in members.files}
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        TypeError,
        NotImplementedError,
        BadZipFile,
        zlib.error,
        TokenError,
    ) as error:
        raise UserError(
            f"Data file '{path}' cannot be read as .npz ({error}); pass --data.path with one that holds "
            "x_train y_train x_test y_test."
        ) from None
    missing = {"x_train", "y_train", "x_test", "y_test"} - found.keys()
    if missing:
        raise UserError(
            f"Data file '{path}' lacks {', '.join(sorted(missing))}; it holds "
            f"{', '.join(found) or 'nothing'}."
        )
    for name in ("y_train", "y_test"):
        if found[name].ndim != 1 or not np.issubdtype(found[name].dtype, np.integer):
            raise UserError(
                f"Data file '{path}': {name} must be integers (N,), but is {found[name].dtype} "
                f"{found[name].shape}."
            )
    values, y_train = np.unique(found["y_train"], return_inverse=True)
    unseen = np.setdiff1d(found["y_test"], values)
    if len(unseen):
        raise UserError(
            f"Data file '{path}' has class {unseen[0]} in y_test that y_train lacks; add training images of "
            "it or drop it."
        )
    if len(values) < 2:
        raise UserError(f"Data file '{path}' has only one class in y_train; a classifier needs two or more.")
    names = [str(name) for name in np.atleast_1d(found.get("classes", values))]
    if len(names) != len(values):
        raise UserError(f"Data file '{path}' names {len(names)} classes but y_train has {len(values)}.")
    labels = {"train": y_train, "test": np.searchsorted(values, found["y_test"])}
    arrays = {s: _images(path, s, found[f"x_{s}"], y) for s, y in labels.items()}
    shapes = [x.shape[1:] for x, _ in arrays.values()]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"Data file '{path}': images of x_train are {shapes[0]} and of x_test {shapes[1]}; they must "
            "agree."
        )
    return arrays, names


def _images(
    path: Path, split: str, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Checked images as (N, H, W, C) beside their labels."""
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.shape[1] != x.shape[2]:
        raise UserError(
            f"Data file '{path}': x_{split} must be square uint8 images (N, H, W) or (N, H, W, 1 or 3), but "
            f"is {x.dtype} {x.shape}."
        )
    if len(x) != len(y) or len(x) == 0:
        raise UserError(
            f"Data file '{path}': x_{split} has {len(x)} images and y_{split} {len(y)} labels; they must be "
            "as many, and not none."
        )
    return x, y.astype(np.int64)


def _torchvision(config: Torchvision) -> tuple[Arrays, list[str]]:
    kinds = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
    kind = getattr(torchvision.datasets, kinds[config.name])
    try:
        sets = {
            name: kind(config.path, train=name == "train", download=config.download)
            for name in ("train", "test")
        }
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Data set {config.name} is not in '{config.path}' ({reason}); pass --data.path with its folder, "
            "--data.download to fetch it, "
            "or --data.name npz with an .npz file."
        ) from None
    arrays: Arrays = {}
    for name, found in sets.items():
        images = np.asarray(found.data)
        arrays[name] = (
            images[..., None] if images.ndim == 3 else images,
            np.asarray(found.targets, dtype=np.int64),
        )
    return arrays, list(sets["train"].classes)
