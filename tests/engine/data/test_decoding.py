"""Workers stay from epoch to epoch and change nothing; copies to a GPU run ahead and nobody waits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_gpu import CUDA, on_gpu, pretended_gpu
from torch import Tensor

from engine.data import decoding
from engine.data.augment import mixup
from engine.data.dataset import Batch
from engine.data.decoding import on_device
from engine.data.folder import FolderData, ImageFolder
from engine.data.sources import load_data
from engine.errors import UserError, WorkerDied

ROOT, CPU = Path(__file__).parents[3], torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 20 images for training and as many for test."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def folder(path: Path, workers: int) -> FolderData:
    data = load_data(ImageFolder(name="imagefolder", path=path, size=8, workers=workers), CPU, 0)
    assert isinstance(data, FolderData)
    return data


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def workers_of(data: FolderData) -> list[int]:
    loader = data._decoders["train"]._loader
    assert loader is not None
    iterator = loader._iterator
    return [worker.pid for worker in iterator._workers]  # type: ignore[union-attr]


def test_workers_stay_and_change_nothing(images: Path) -> None:
    alone, data = folder(images, 0), folder(images, 2)
    wanted = [list(alone.train_batches(4, epoch)) for epoch in range(3)]
    # A first epoch that is left in the middle, as after a signal.
    left = data.train_batches(4, 0)
    next(left)
    del left
    first = workers_of(data)
    assert len(first) == 2
    for epoch in (0, 1, 2):
        assert same(list(data.train_batches(4, epoch)), wanted[epoch])
    # As after a resume in the middle of an epoch.
    assert same(list(data.train_batches(4, 1, skip=2)), wanted[1][2:])
    assert workers_of(data) == first, "the same processes"
    # Two epochs at once: the second has workers for itself.
    both = zip(data.train_batches(4, 1), data.train_batches(4, 2), strict=True)
    pairs = list(both)
    assert same([pair[0] for pair in pairs], wanted[1])
    assert same([pair[1] for pair in pairs], wanted[2])
    assert workers_of(data) == first


def test_a_damaged_image_does_not_end_the_workers_use(images: Path) -> None:
    data = folder(images, 1)
    list(data.train_batches(4, 0))
    victim = next((images / "train").rglob("*.png"))
    good = victim.read_bytes()
    for path in (images / "train").rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(UserError, match="cannot be used"):
        list(data.train_batches(4, 1))
    for path in (images / "train").rglob("*.png"):
        path.write_bytes(good)
    assert len(list(data.train_batches(4, 1))) == 4


def test_large_batches_of_an_evaluation_are_decoded_in_parts(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(folder(images, 0).batches("test", 15))
    monkeypatch.setattr("engine.data.folder.PART", 4)
    for most in (2**31, 0):  # kept on the device, and not
        monkeypatch.setattr("engine.data.folder.CACHE_BYTES", most)
        parts = list(folder(images, 0).batches("test", 15))
        assert [len(x) for x, _ in parts] == [15, 5]
        assert same(parts, whole)


def pairs(pinned: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(4):
        x, y = torch.full((2, 3), float(number)), torch.full((2,), number)
        yield (x.pin_memory(), y.pin_memory()) if pinned else (x, y)


def test_copies_to_a_gpu_run_ahead_and_nobody_waits() -> None:
    asked: list[int] = []

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for number, pair in enumerate(pairs(pinned=True)):
            asked.append(number)
            yield pair

    with pretended_gpu(ROOT) as gpu:
        with gpu.record():
            found = []
            for x, y in on_device(watched(), CUDA):
                assert on_gpu(x) and on_gpu(y)
                # The next batch is on its way before this one is computed with.
                assert len(asked) == min(len(found) + 2, 4)
                found.append(x)
        assert not gpu.syncs, gpu.syncs
        assert sum(gpu.copies.values()) == 8
        assert [x[0, 0].item() for x in found] == [0, 1, 2, 3]


def test_on_a_cpu_nothing_is_asked_in_advance() -> None:
    source = pairs(pinned=False)
    first, _ = next(on_device(source, CPU))
    assert float(first[0, 0]) == 0
    assert float(next(source)[0][0, 0]) == 1


def test_mixup_draws_without_a_wait() -> None:
    with pretended_gpu(ROOT) as gpu:
        x, y = torch.rand(4, 1, 2, 2, device=CUDA), torch.eye(4, device=CUDA)
        with gpu.record():
            mixed, _ = mixup(x, y, 0.2, np.random.default_rng(0))
        assert on_gpu(mixed)
    assert not gpu.syncs, gpu.syncs
    assert sum(gpu.copies.values()) == 2


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch(
    images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """torch then sees a connection end, not the death of a process."""

    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr(decoding, "_checked", ends)
    data = folder(images, 1)
    with pytest.raises(WorkerDied, match=f"died .*({error.args[-1] if error.args else 'EOFError'}).*resume"):
        next(iter(data.train_batches(4, 0)))
