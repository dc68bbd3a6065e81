"""A source that streams: images in shard files that are read from front to back, never by index."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from engine.compute.distributed import ALONE, Ranks
from engine.config import Located
from engine.data.dataset import Batch, Data, ImageSource, Split, Subset, stream_name
from engine.seed import numpy_generator

SPLIT_OF_SUBSET: dict[Subset, tuple[Split, ...]] = {
    "train": ("train",),
    "val": ("val",),
    "both": ("train", "val"),
}


def write_shards(root: Path, images: dict[Split, int], a_shard: int = 10) -> Path:
    """Shards `<split>-<number>.npz` of random 6 x 6 images in four classes."""
    rng = np.random.default_rng(0)
    for split, count in images.items():
        for number, start in enumerate(range(0, count, a_shard)):
            size = min(a_shard, count - start)
            x = rng.integers(0, 256, (size, 3, 6, 6), np.uint8)
            np.savez(root / f"{split}-{number}.npz", x=x, y=np.arange(start, start + size) % 4)
    return root


class Shards(ImageSource):
    """A folder of shards."""

    name: Literal["shards"] = "shards"
    path: Located

    def load(self, device: torch.device, seed: int) -> "ShardData":
        """Count the images of all shards."""
        return ShardData(self, device, seed)


class ShardData(Data):
    """Images in the order of the files. An epoch shuffles the shards and the images of each."""

    def __init__(self, config: Shards, device: torch.device, seed: int):
        super().__init__(config, list("abcd"), [0.5] * 3, [0.25] * 3, 6, device, seed)
        self.shards: dict[Split, list[Path]] = {}
        self.counts: dict[Split, int] = {}
        for split in ("train", "val", "test"):
            paths = sorted(config.path.glob(f"{split}-*.npz"))
            self.shards[split] = paths
            self.counts[split] = sum(len(np.load(path)["y"]) for path in paths)

    def count(self, split: Split) -> int:
        return self.counts[split]

    def preprocessing(self) -> dict[str, Any]:
        return {"image_size": self.size}

    def train_batches(
        self, batch_size: int, epoch: int, skip: int = 0, ranks: Ranks = ALONE, subset: Subset = "train"
    ) -> Iterator[Batch]:
        rng = numpy_generator(self.seed, *stream_name(subset, "order"), epoch)
        paths: list[Path] = []
        for split in SPLIT_OF_SUBSET[subset]:
            paths += self.shards[split]
        images = self._images([paths[i] for i in rng.permutation(len(paths))], rng)
        for step, (x, y) in enumerate(_batched(images, batch_size)):
            if len(y) == batch_size and step >= skip:
                share = ranks.share(batch_size)
                yield self.normalise(x[share].to(self.device)), y[share].to(self.device)

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        images = self._images(self.shards[split], numpy_generator(self.seed, "plain", split))
        left = self.counts[split] if limit is None else limit
        for x, y in _batched(images, batch_size):
            if left > 0:
                yield self.normalise(x[:left].to(self.device)), y[:left].to(self.device)
            left -= len(y)

    def _images(self, paths: list[Path], rng: np.random.Generator) -> Iterator[tuple[Any, int]]:
        for path in paths:
            shard = np.load(path)
            x, y = shard["x"], shard["y"]
            for i in rng.permutation(len(y)):
                yield x[i], int(y[i])


def _batched(images: Iterator[tuple[Any, int]], size: int) -> Iterator[Batch]:
    pending: list[tuple[Any, int]] = []
    for image in images:
        pending.append(image)
        if len(pending) == size:
            yield _stack(pending)
            pending = []
    if pending:
        yield _stack(pending)


def _stack(images: list[tuple[Any, int]]) -> Batch:
    x = torch.from_numpy(np.stack([x for x, _ in images]))
    return x, torch.tensor([y for _, y in images])
