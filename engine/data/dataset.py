"""Images as three splits: `train` to learn weights, `val` to decide on architectures, `test` to report.

Every source keeps the same promises. The validation split is held out from training by seed and class. What
is drawn in epoch e depends on (seed, e) alone, so a resumed run sees what an uninterrupted run sees. Pixels
travel as uint8, a quarter of the bytes of float32, and are normalised on the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from engine.compute.device import send
from engine.compute.distributed import ALONE, Ranks
from engine.compute.evaluation import BYTES_OF_BLOCKS, CPU_BATCH, evaluation_batch
from engine.config import Config
from engine.data.augment import mixup
from engine.data.balance import Balance, Ints, balanced_order, class_weights
from engine.errors import UserError
from engine.outside.names import check_class_names
from engine.seed import numpy_generator

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# What a network is trained on. A search of architectures trains its second level on the validation split.
Subset = Literal["train", "val", "both"]
Batch = tuple[Tensor, Tensor]


Interpolation = Literal["bicubic", "bilinear"]


class Preprocessing(Config):
    """What weights want of images: the normalisation, and of files the crop that they were evaluated with."""

    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    crop_share: float | None = None
    interpolation: Interpolation | None = None


class ImageSource(Config):
    """The settings that all sources of images share. Each source adds its own and a `name` of its own."""

    val: float = Field(0.2, gt=0, lt=1, description="fraction of the training images held out for validation")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0: none")
    balance: Balance = Field(
        "none",
        description=(
            "what training does about classes of unequal size: sampler draws all equally often, weights "
            "weighs the loss of labels"
        ),
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description=(
            "subtracted from each channel of an image in [0, 1]; none: as the weights want that training "
            "starts from, else of the images"
        ),
    )
    std: tuple[PositiveFloat, ...] | None = Field(
        None, description="each channel is divided by this after the subtraction; none: as for the mean"
    )

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std belong together; give one number a channel for each of them")
        return self

    def prepared_for(self, wanted: Preprocessing) -> Self:
        """These settings with what weights want of images, unless the user gave something else."""
        missing = {}
        for name, value in wanted.model_dump().items():
            # Only folders have a crop and an interpolation.
            if name in type(self).model_fields and getattr(self, name) is None:
                missing[name] = value
        return self.model_copy(update=missing)

    def load(self, device: torch.device, seed: int) -> "Data":
        """Read the images.

        Args:
            device: where batches are delivered.
            seed: decides which images are held out and what augmentation draws.

        Raises:
            UserError: the data is missing, damaged or does not fit.
        """
        raise NotImplementedError


class Data(ABC):
    """Three splits of images on their way to a device.

    A source whose images can be read in any order derives from `IndexedData`. A source that streams, such as
    shards that are read from front to back, derives from this class and writes `train_batches` and `batches`.

    Args:
        config: the settings of the source. Where they have a mean and a deviation, those are used.
        classes: names of the classes, in the order of the labels.
        mean: of each channel of an image in [0, 1]; `normalise` subtracts it.
        std: what `normalise` divides each channel by.
        size: side of the square images, in pixels.
        device: where batches are delivered.
        seed: decides order, augmentation and the validation split.

    Raises:
        UserError: a class has no name or that of another, or the settings have a mean for another number of
            channels. Grey images pass for three.
    """

    def __init__(
        self,
        config: ImageSource,
        classes: list[str],
        mean: list[float],
        std: list[float],
        size: int,
        device: torch.device,
        seed: int,
    ):
        try:
            check_class_names(tuple(classes))
        except ValueError as error:
            raise UserError(f"The images cannot be used: {error}.") from None
        self.config, self.classes, self.size, self.device, self.seed = config, classes, size, device, seed
        # Weights want the normalisation that they were trained with, whatever the images are.
        if config.mean and config.std:
            if len(mean) not in (1, len(config.mean)):
                raise UserError(
                    f"The images have {len(mean)} channels, but the weights (or --data.mean) want "
                    f"{len(config.mean)}; give other images, or train from scratch."
                )
            mean, std = list(config.mean), list(config.std)
        self.mean, self.std = mean, std
        self.channels = len(mean)
        # SHA-256 of the training images, by which changed images are told; None where nobody has read them.
        self.pixels_sha256: str | None = None
        # Sentences about how the images were read and split, which commands print.
        self.notes: list[str] = []
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]

    @abstractmethod
    def count(self, split: Split) -> int:
        """Number of images in `split`."""

    def labels(self, subset: Subset) -> Ints | None:
        """Class of each image (N,); None for a source that learns it only when it reads the image."""
        return None

    def class_counts(self, subset: Subset = "train") -> Ints | None:
        """Images of each class (K,) in `subset`; None if the source does not know before it reads them."""
        labels_N = self.labels(subset)
        return None if labels_N is None else np.bincount(labels_N, minlength=len(self.classes))

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How an image file becomes the square that the network's own resize expects."""

    @abstractmethod
    def train_batches(
        self, batch_size: int, epoch: int, skip: int = 0, ranks: Ranks = ALONE, subset: Subset = "train"
    ) -> Iterator[Batch]:
        """The augmented batches of an epoch.

        Args:
            batch_size: images in a batch, of all ranks together.
            epoch: its number; another epoch has another order and other augmentation.
            skip: batches at the start of the epoch that are left out.
            ranks: the processes that train together; each gets its share of every batch.
            subset: which images.

        Yields:
            x (N, C, size, size), float32, channels_last, normalised; and y: classes (N,), or with mixup
            probabilities (N, K). With `balance` weights each row of probabilities is multiplied by the weight
            of its class, so that every loss that is linear in them is weighted.
        """

    @abstractmethod
    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of a split without augmentation, always in the same mixed order.

        The order matters: sources list images class by class, and BatchNorm that is calibrated on batches of
        one or two classes costs several points of accuracy.

        Args:
            split: which images.
            batch_size: images in a batch; the last one may have fewer.
            limit: stop after this many images.
        """

    def evaluation_batches(
        self,
        split: Split,
        limit: int | None = None,
        on_cpu: int = CPU_BATCH,
        bytes_a_pixel: int = BYTES_OF_BLOCKS,
    ) -> Iterator[Batch]:
        """The batches of a split to judge a network on, as large as suits the device.

        Only for what does not depend on batches, as a network in eval mode does not.

        Args:
            split: which images.
            limit: stop after this many images.
            on_cpu, bytes_a_pixel: as `evaluation_batch` takes them.
        """
        size = evaluation_batch(self.device, self.size, on_cpu, bytes_a_pixel)
        return self.batches(split, size, limit)

    def size_of(self, subset: Subset) -> int:
        """Number of images in `subset`."""
        if subset == "both":
            return self.count("train") + self.count("val")
        return self.count(subset)

    def steps(self, batch_size: int, subset: Subset = "train") -> int:
        """Number of batches in an epoch; the last, incomplete one is left out.

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

    def normalise(self, x_NCHW: Tensor) -> Tensor:
        """uint8 images as a network takes them: float32, / 255, - mean, / std; channels_last.

        Grey images become three equal channels for weights that want three.
        """
        x_NCHW = x_NCHW.expand(-1, self.channels, -1, -1)
        x = x_NCHW.to(memory_format=torch.channels_last).float() / 255
        return (x - self._mean) / self._std


class IndexedData(Data):
    """Images that can be read in any order: an order is a list of their indices."""

    @abstractmethod
    def labels(self, subset: Subset) -> Ints:
        """Class of each image (N,), in the order of the indices."""

    @abstractmethod
    def _augmented(
        self, subset: Subset, epoch: int, batches: list[NDArray[np.int64]], skip: int, share: slice
    ) -> Iterator[Batch]:
        """Augmented uint8 images (N, C, size, size) and labels (N,), a pair for each batch.

        Args:
            subset: the images that the indices count.
            epoch: for the random streams.
            batches: indices of the images of each batch.
            skip: batches of the epoch that came before; step `skip` is the first one here.
            share: the part of each batch to deliver.
        """

    @abstractmethod
    def _plain(self, split: Split, indices: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """Batches of uint8 images of `split` at `indices`, without augmentation, and of their labels."""

    def train_batches(
        self, batch_size: int, epoch: int, skip: int = 0, ranks: Ranks = ALONE, subset: Subset = "train"
    ) -> Iterator[Batch]:
        """See `Data.train_batches`.

        The shares of all ranks, joined, are image for image what one process gets. Mixup is the exception: it
        blends an image with one of the same rank.
        """
        order = self._order(subset, epoch)
        starts = range(skip * batch_size, self.steps(batch_size, subset) * batch_size, batch_size)
        indices = [order[start : start + batch_size] for start in starts]
        targets_KK = self._targets(subset)
        augmented = self._augmented(subset, epoch, indices, skip, ranks.share(batch_size))
        for step, (x, y) in enumerate(augmented, start=skip):
            x = self.normalise(x)
            if targets_KK is not None:
                y = targets_KK[y]
            if self.config.mixup > 0:
                # Ranks blend their own images, so their draws must differ; hence the seed of the rank.
                rng = numpy_generator(ranks.seed(self.seed), *stream_name(subset, "mixup"), epoch, step)
                x, y = mixup(x, y, self.config.mixup, rng)
            yield x, y

    def _order(self, subset: Subset, epoch: int) -> NDArray[np.int64]:
        """The indices of the images of an epoch, in their order."""
        rng = numpy_generator(self.seed, *stream_name(subset, "order"), epoch)
        if self.config.balance == "sampler":
            return balanced_order(self.labels(subset), rng)
        return rng.permutation(self.size_of(subset))

    def _targets(self, subset: Subset) -> Tensor | None:
        """The probabilities that stand for each class (K, K); None where the class itself is the target."""
        is_weighted = self.config.balance == "weights"
        if not is_weighted and self.config.mixup == 0:
            return None
        targets_KK = torch.eye(len(self.classes), device=self.device)
        if is_weighted:
            counts_K = np.bincount(self.labels(subset), minlength=len(self.classes))
            targets_KK *= send(torch.from_numpy(class_weights(counts_K)), self.device)
        return targets_KK

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """See `Data.batches`."""
        # Mixed before the limit cuts, so that a part of the split has images of all classes.
        indices = numpy_generator(self.seed, "plain", split).permutation(self.count(split))[:limit]
        for x, y in self._plain(split, indices, batch_size):
            yield self.normalise(x), y


def stream_name(subset: Subset, purpose: str) -> tuple[str, ...]:
    """The name of a random stream; for the training images it is the bare purpose."""
    return (purpose,) if subset == "train" else (purpose, subset)
