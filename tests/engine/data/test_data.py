"""Every source keeps the promises of engine.data, and says in one sentence what is wrong with a broken
one."""

import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shards import Shards, write_shards
from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.data.arrays import ArrayData
from engine.data.dataset import Data, ImageSource, Subset
from engine.data.digits import Digits
from engine.data.folder import ImageFolder
from engine.data.image_files import EXTENSIONS
from engine.data.npz import Npz
from engine.data.sources import load_data
from engine.data.split import hold_out
from engine.data.text import Grammar, load_text
from engine.data.torchvision_sets import Torchvision
from engine.errors import UserError

CPU = torch.device("cpu")


def write_npz(path: Path, **over: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "x_train": rng.integers(0, 256, (40, 6, 6, 3), np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (8, 6, 6, 3), np.uint8),
        "y_test": np.arange(8) % 4,
    } | over
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return path


def write_folder(
    root: Path, held: tuple[str, ...] = ("test",), classes: tuple[str, ...] = ("cat", "dog"), images: int = 10
) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", *held):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                shape = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
                pixels = rng.integers(0, 128, shape, np.uint8) + 100 * (label % 2)
                Image.fromarray(pixels.astype(np.uint8)).convert("L" if i == 0 else "RGB").save(
                    root / split / name / f"{i}.png"
                )
    return root


@pytest.fixture(params=["digits", "npz", "imagefolder", "workers", "a source that streams"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSource:
    if request.param == "digits":
        return Digits()
    if request.param == "npz":
        return Npz(name="npz", path=write_npz(tmp_path / "x.npz"), crop=1, cutout=2, mixup=0.3)
    if request.param == "a source that streams":
        return Shards(path=write_shards(tmp_path, {"train": 41, "val": 13, "test": 5}))
    workers = 2 if request.param == "workers" else 0
    return ImageFolder(
        name="imagefolder", path=write_folder(tmp_path), size=16, policy="randaugment", workers=workers
    )


def epoch(data: Data, number: int, skip: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.train_batches(4, number, skip))


@pytest.mark.slow
def test_contract(source: ImageSource) -> None:
    data = source.load(CPU, seed=0)
    first, again, other = epoch(data, 0), epoch(source.load(CPU, seed=0), 0), epoch(data, 1)
    assert len(first) == data.steps(4) == data.count("train") // 4
    for (x, y), (x2, y2) in zip(first, again, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert x.shape == (4, data.channels, data.size, data.size)
        assert x.dtype == torch.float32
    assert not torch.equal(first[0][0], other[0][0])
    for (x, _), (x2, _) in zip(first[2:], epoch(data, 0, skip=2), strict=True):
        assert torch.equal(x, x2), "resuming in the middle of an epoch changes its images"
    plain = [y for _, y in data.batches("val", 3)]
    assert sum(map(len, plain)) == data.count("val") > 0
    few = list(data.batches("train", 3, limit=5))
    assert sum(len(y) for _, y in few) == 5
    assert torch.equal(few[0][0], next(data.batches("train", 3, limit=5))[0])


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["val", "both"])
def test_other_parts_keep_the_promises_of_training(source: ImageSource, subset: Subset) -> None:
    """An architecture search also trains on the validation split, or on both."""
    data = source.load(CPU, seed=0)

    def batches(number: int, skip: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(data.train_batches(4, number, skip, subset=subset))

    first = batches(0)
    assert data.size_of(subset) == data.count("val") + (data.count("train") if subset == "both" else 0)
    assert len(first) == data.steps(4, subset) == data.size_of(subset) // 4
    for (x, y), (x2, y2) in zip(first, batches(0), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(first[0][0], batches(1)[0][0])
    for (x, _), (x2, _) in zip(first[1:], batches(0, skip=1), strict=True):
        assert torch.equal(x, x2)
    with pytest.raises(
        UserError,
        match=f"more than the {data.size_of(subset)} "
        f"{'validation' if subset == 'val' else 'training'} images",
    ):
        data.steps(100_000, subset)


def test_parts_are_the_right_images_in_an_order_of_their_own(tmp_path: Path) -> None:
    """Each image is known by its colour: 40 of them, of which 8 are held out."""
    colours = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 3), np.uint8)
    config = Npz(
        name="npz",
        path=write_npz(tmp_path / "x.npz", x_train=colours, y_train=np.arange(40) % 4),
        val=0.2,
        crop=0,
        flip=False,
    )
    data = load_data(config, CPU, seed=0)

    def seen(subset: Subset) -> list[int]:
        colours = [
            x[:, 0, 0, 0] * data.std[0] + data.mean[0] for x, _ in data.train_batches(4, 0, subset=subset)
        ]
        return (torch.cat(colours) * 255).round().int().tolist()

    parts = {subset: seen(subset) for subset in ("train", "val", "both")}
    assert {subset: len(set(found)) for subset, found in parts.items()} == {"train": 32, "val": 8, "both": 40}
    assert not set(parts["train"]) & set(parts["val"])
    labels = [int(label) for _, y in data.train_batches(4, 0, subset="both") for label in y]
    assert labels == [colour % 4 for colour in parts["both"]]
    assert [c for c in parts["both"] if c in parts["train"]] != parts["train"], (
        "the order of all is not that of the subset"
    )


def test_seed_moves_the_validation_split_but_not_the_test_split() -> None:
    a, b = (load_data(Digits(), CPU, seed) for seed in (0, 1))
    assert isinstance(a, ArrayData) and isinstance(b, ArrayData)
    assert not torch.equal(a.splits["val"][1], b.splits["val"][1])
    assert torch.equal(a.splits["test"][0], b.splits["test"][0])
    assert [a.count("train"), a.count("val"), a.count("test")] == [754, 504, 539]


def test_plain_training_batches_mix_the_classes_of_a_sorted_source(tmp_path: Path) -> None:
    x = np.zeros((400, 4, 4), np.uint8)
    path = write_npz(
        tmp_path / "x.npz", x_train=x, y_train=np.repeat(np.arange(4), 100), x_test=x[:4], y_test=np.arange(4)
    )
    data = load_data(Npz(name="npz", path=path), CPU, 0)
    for limit in (None, 128):
        batches = [y for _, y in data.batches("train", 32, limit) if len(y) == 32]
        assert len(batches) >= 4
        assert all(len(y.unique()) == 4 for y in batches)


def test_normalised_training_images_have_zero_mean_and_unit_deviation() -> None:
    data = load_data(Digits(), CPU, 0)
    x = torch.cat([x for x, _ in data.batches("train", 100)])
    assert abs(float(x.mean())) < 1e-4
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_cutout_leaves_the_mean_colour() -> None:
    plain, cut = (
        next(load_data(Digits(crop=0, cutout=size), CPU, 0).train_batches(64, 0))[0] for size in (0, 4)
    )
    assert float(cut[cut != plain].abs().max()) < 0.01, "which is zero once normalised"


def test_jitter_changes_colours_of_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    sources = [
        ImageFolder(name="imagefolder", path=tmp_path, size=16, workers=0, jitter=j)
        for j in ((0, 0, 0, 0), (0.4, 0.4, 0.4, 0.2))
    ]
    plain, changed = (load_data(source, CPU, 0) for source in sources)
    assert not torch.allclose(epoch(plain, 0)[0][0], epoch(changed, 0)[0][0])
    assert torch.equal(next(plain.batches("val", 4))[0], next(changed.batches("val", 4))[0])


def test_hold_out_takes_its_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 1])
    kept, held = hold_out(labels, 0.2, np.random.default_rng(0))
    assert sorted([*kept, *held]) == list(range(151))
    assert np.bincount(labels[held], minlength=3).tolist() == [20, 10, 0]


def test_a_torchvision_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Data set cifar10 is not in .* --data.download"):
        load_data(Torchvision(name="cifar10", path=tmp_path), CPU, 0)


def test_fashion_mnist_through_torchvision(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.repeat(labels * 20, 28 * 28).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    data = load_data(Torchvision(name="fashion_mnist", path=tmp_path), CPU, 0)
    assert (data.channels, data.size, data.count("test"), data.classes[0]) == (1, 28, 20, "T-shirt/top")
    x, y = next(data.batches("test", 20))
    assert torch.equal(x[:, 0, 0, 0].argsort(stable=True), y.argsort(stable=True))
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match="Data set fashion_mnist is not in"):
        load_data(Torchvision(name="fashion_mnist", path=tmp_path), CPU, 0)


def test_val_and_test_folders_are_both_used_as_they_are(tmp_path: Path) -> None:
    data = load_data(
        ImageFolder(name="imagefolder", path=write_folder(tmp_path, ("val", "test")), size=16, workers=0),
        CPU,
        0,
    )
    assert [data.count("train"), data.count("val"), data.count("test")] == [20, 20, 20]


BROKEN_NPZ = [
    ({"x_test": None}, "lacks x_test"),
    ({"y_train": np.zeros(40, int)}, r"class 1 in y_test that y_train lacks"),
    ({"y_train": np.zeros(40, int), "y_test": np.zeros(8, int)}, "only one class"),
    ({"y_test": np.arange(8)}, "has class 4 in y_test that y_train lacks"),
    ({"x_train": np.zeros((40, 6, 6, 3))}, "must be square uint8 images"),
    ({"x_train": np.zeros((40, 6, 5), np.uint8)}, "must be square uint8 images"),
    ({"y_train": np.arange(39) % 4}, "40 images and y_train 39 labels"),
    ({"y_train": np.zeros((40, 1), int)}, r"y_train must be integers \(N,\), but is int64 \(40, 1\)"),
    ({"y_train": np.zeros(40)}, r"y_train must be integers \(N,\), but is float64"),
    ({"x_test": np.zeros((8, 6, 6), np.uint8)}, "they must agree"),
    ({"classes": np.array("a")}, "names 1 classes but y_train has 4"),
    (
        {"y_train": np.array([0, 1, 2, 3]), "x_train": np.zeros((4, 6, 6, 3), np.uint8)},
        "none can be held out",
    ),
    ({"classes": np.array(["a", "b"])}, "names 2 classes but y_train has 4"),
]


@pytest.mark.parametrize(("over", "said"), BROKEN_NPZ)
def test_broken_npz(tmp_path: Path, over: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_data(Npz(name="npz", path=write_npz(tmp_path / "x.npz", **over)), CPU, 0)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_unreadable_npz(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        load_data(Npz(name="npz", path=path), CPU, 0)


def folder(path: Path) -> Data:
    return load_data(ImageFolder(name="imagefolder", path=path, size=16, workers=0), CPU, 0)


def test_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' does not exist"):
        folder(tmp_path / "nowhere")


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images"):
        folder(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only one class, 'cat'"):
        folder(write_folder(tmp_path, classes=("cat",)))


def test_empty_class(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "train" / "eel").mkdir()
    with pytest.raises(UserError, match=r"Class folder '.*eel' has no images"):
        folder(tmp_path)


def test_nothing_beside_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither val/ nor test/"):
        folder(write_folder(tmp_path, held=()))


def test_class_that_train_lacks(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "test" / "eel").mkdir()
    with pytest.raises(UserError, match="has class 'eel' that"):
        folder(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_corrupt_file_is_found_at_the_start(tmp_path: Path, damage: bytes | None) -> None:
    victim = write_folder(tmp_path) / "test" / "dog" / "3.png"
    victim.write_bytes(victim.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(UserError, match=r"3\.png' cannot be used"):
        folder(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_breaks_later_is_one_sentence(tmp_path: Path, workers: int) -> None:
    data = load_data(
        ImageFolder(name="imagefolder", path=write_folder(tmp_path), size=16, workers=workers), CPU, 0
    )
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(UserError, match=r"png' cannot be used .* convert, repair or remove it\.$"):
        epoch(data, 0)


def test_batch_larger_than_the_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A batch of 64 images is more than the 16 training images"):
        folder(write_folder(tmp_path)).steps(64)


def test_real_photographs(nas_data: Path) -> None:
    data = load_data(ImageFolder(name="imagefolder", path=nas_data / "flowers12", size=32, workers=0), CPU, 0)
    assert (len(data.classes), data.count("train") + data.count("val"), data.count("test")) == (12, 720, 240)
    x, y = next(data.batches("test", 32))
    assert x.shape == (32, 3, 32, 32)
    assert y.min() >= 0


@pytest.mark.parametrize("wrong", ["digits", None, Grammar()])
def test_what_is_not_a_source_of_images_is_refused(wrong: object) -> None:
    with pytest.raises(
        UserError, match=r"load_data takes the settings of a source of images, not .*; give Digits"
    ):
        load_data(wrong, CPU, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["grammar", None, Digits()])
def test_what_is_not_a_source_of_text_is_refused(wrong: object) -> None:
    with pytest.raises(
        UserError, match=r"load_text takes the settings of a source of text, not .*; give Grammar"
    ):
        load_text(wrong)  # type: ignore[arg-type]


def test_reading_a_folder_leaves_the_signals_of_the_process_alone(tmp_path: Path) -> None:
    """torch installs a handler with its first workers; what a program installed itself is called from
    that."""
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: heard.append(number))
    try:
        source = ImageFolder(name="imagefolder", path=write_folder(tmp_path), size=16, workers=1)
        list(load_data(source, CPU, 0).train_batches(4, 0))
        os.kill(os.getpid(), signal.SIGCHLD)
        assert heard
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_files_of_a_folder_are_those_that_torchvision_reads() -> None:
    # AVIF, which torchvision passes over, is read where Pillow can.
    assert set(EXTENSIONS) - {".avif"} == set(IMG_EXTENSIONS)
