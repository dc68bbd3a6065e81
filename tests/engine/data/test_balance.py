"""Classes of unequal size: drawn evenly by the sampler, weighted in the loss, counted and warned of."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from engine.compute.distributed import Ranks
from engine.data.arrays import ArrayData
from engine.data.balance import Balance, balanced_order, class_weights, describe_balance, describe_counts
from engine.data.dataset import Data, Subset
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.sources import load_data

CPU = torch.device("cpu")
COUNTS = {"rare": 5, "some": 20, "many": 55}


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    """80 training images of three classes, each of a colour of its own."""
    y = np.repeat(np.arange(3), list(COUNTS.values()))
    x = np.arange(80, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    path = tmp_path / "unequal.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[::8], y_test=y[::8], classes=list(COUNTS))
    return path


def load(path: Path, balance: Balance, mixup: float = 0.0) -> Data:
    source = Npz(name="npz", path=path, crop=0, flip=False, balance=balance, mixup=mixup)
    return load_data(source, CPU, 0)


@pytest.mark.parametrize("subset", ["train", "val", "both"])
def test_the_sampler_draws_all_classes_equally_often(unequal: Path, subset: Subset) -> None:
    data = load(unequal, "sampler")
    labels = torch.cat([y for _, y in data.train_batches(1, 0, subset=subset)])
    counts = torch.bincount(labels, minlength=3)
    assert len(labels) == data.size_of(subset), "an epoch keeps its length"
    assert counts.max() - counts.min() <= 1
    again = torch.cat([y for _, y in data.train_batches(1, 0, subset=subset)])
    other = torch.cat([y for _, y in data.train_batches(1, 1, subset=subset)])
    assert torch.equal(labels, again) and not torch.equal(labels, other)


def test_the_sampler_shows_all_images_of_a_small_class_before_one_again() -> None:
    labels = np.repeat([0, 1], [4, 36])
    for epoch in range(5):
        order = balanced_order(labels, np.random.default_rng(epoch))
        of_small = np.bincount(order[labels[order] == 0], minlength=4)
        of_large = order[labels[order] == 1]
        assert of_small.sum() == 20 and set(of_small) == {5}
        assert len(set(of_large)) == len(of_large) == 20


def test_the_sampler_resumes_and_shares_its_batches(unequal: Path) -> None:
    data = load(unequal, "sampler")
    whole = list(data.train_batches(8, 3))
    for (x, y), (x2, y2) in zip(whole[2:], data.train_batches(8, 3, skip=2), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    shares = [list(data.train_batches(8, 3, ranks=Ranks(rank, 2))) for rank in range(2)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *shares, strict=True):
        assert torch.equal(x, torch.cat([x0, x1])) and torch.equal(y, torch.cat([y0, y1]))


def test_validation_images_stay_as_they_are(unequal: Path) -> None:
    plain, sampled = load(unequal, "none"), load(unequal, "sampler")
    for (x, y), (x2, y2) in zip(plain.batches("val", 4), sampled.batches("val", 4), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_an_image_that_comes_twice_in_an_epoch_is_augmented_in_two_ways(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, name, images in (("train", "a", 2), ("train", "b", 30), ("test", "a", 1), ("test", "b", 1)):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    source = ImageFolder(name="imagefolder", path=tmp_path, size=16, workers=0, balance="sampler")
    data = load_data(source, CPU, 0)
    x = torch.cat([x[y == 0] for x, y in data.train_batches(5, 0)])
    assert len(x) > 5 and len(torch.unique(x, dim=0)) == len(x), "one image of class a is left for training"
    skipped = list(data.train_batches(5, 0, skip=2))
    assert torch.equal(skipped[0][0], list(data.train_batches(5, 0))[2][0])


def test_weights_are_those_of_scikit_learn_and_leave_the_mean_loss_alone(unequal: Path) -> None:
    data = load(unequal, "weights")
    assert isinstance(data, ArrayData)
    labels = data.labels("train")
    weights = class_weights(np.bincount(labels))
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert weights[labels].mean() == pytest.approx(1)
    # The targets carry the weights, so that the plain loss is the weighted one.
    generator = torch.Generator().manual_seed(0)
    for _, y in data.train_batches(8, 0):
        classes = y.argmax(1)
        logits = torch.randn(8, 3, generator=generator)
        each = F.cross_entropy(logits, classes, reduction="none") * torch.from_numpy(weights)[classes]
        assert F.cross_entropy(logits, y) == pytest.approx(float(each.mean()), rel=1e-5)


def test_weights_and_mixup_go_together(unequal: Path) -> None:
    sums = [y.sum(1) for _, y in load(unequal, "weights", mixup=0.5).train_batches(8, 0)]
    assert torch.cat(sums).std() > 0.1, "a blended image has the blended weight of its two classes"


def test_counts_are_short_and_unequal_ones_are_warned_of() -> None:
    few = np.array([5, 20, 55])
    assert describe_counts(list(COUNTS), few) == "training images of each class: rare 5, some 20, many 55"
    said = describe_balance(list(COUNTS), few, "none")
    assert "5 training images of 'rare' to 55 of 'many'" in said and "--data.balance sampler" in said
    assert describe_balance(["a", "b"], np.array([10, 14]), "none") == ""
    assert "warning" not in describe_balance(list(COUNTS), few, "sampler")
    many = describe_counts([f"class{i}" for i in range(1000)], np.arange(1, 1001))
    assert many == "training images of each class: 1 (class0) to 1000 (class999), median 500.5"
    same = describe_counts([f"class{i}" for i in range(200)], np.full(200, 3))
    assert same == "training images of each class: 3"
