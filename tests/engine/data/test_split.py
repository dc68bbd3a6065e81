"""How a folder of photographs becomes three splits, and what is said of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.dataset import SPLITS
from engine.data.folder import FolderData, ImageFolder
from engine.data.sources import load_data
from engine.data.split import describe_hold_out, hold_out
from engine.errors import UserError

CPU = torch.device("cpu")


def write_classes(root: Path, classes: dict[str, int]) -> Path:
    """A folder for each class with so many images."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (8, 8), (i, i, i)).save(root / name / f"{i}.png")
    return root


def load(root: Path, seed: int = 0) -> FolderData:
    data = load_data(ImageFolder(name="imagefolder", path=root, size=8, workers=0), CPU, seed)
    assert isinstance(data, FolderData)
    return data


def test_class_folders_alone_are_split_by_seed(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"cat": 20, "dog": 10})
    first, other = load(root, seed=0), load(root, seed=1)
    assert {split: first.count(split) for split in SPLITS} == {"train": 19, "val": 5, "test": 6}
    everything = [path for split in SPLITS for path, _ in first.files[split]]
    assert len(set(everything)) == 30, "no image is in two splits"
    assert first.files == load(root, seed=0).files
    # Results of several seeds are compared on the same test images.
    assert first.files["test"] == other.files["test"] and first.files["val"] != other.files["val"]
    assert any("has no train/" in note and "--data.test" in note for note in first.notes)


def test_val_is_not_called_test_in_silence(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path / "val", {"cat": 3, "dog": 3})
    alone = load(tmp_path)
    assert alone.count("test") == 6 and any("serves as test images" in note for note in alone.notes)
    write_classes(tmp_path / "test", {"cat": 2, "dog": 2})
    both = load(tmp_path)
    assert (both.count("val"), both.count("test")) == (6, 4) and both.notes == []


def test_many_tiny_classes_say_what_is_held_out(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {f"c{i:02}": 3 for i in range(20)} | {"single": 1})
    data = load(root)
    assert {split: data.count(split) for split in SPLITS} == {"train": 21, "val": 20, "test": 20}
    assert set(data.labels("train")) == set(range(21)), "every class is trained"
    said = "\n".join(data.notes)
    assert "20 of 61 images are held out for test, 33% instead of 20%" in said
    assert "20 of 41 images are held out for validation, 49% instead of 20%" in said
    assert "1 of 21 classes is too small to give an image for test: single" in said
    with pytest.raises(UserError, match="none can be held out for validation"):
        load(write_classes(tmp_path / "pairs", {"a": 2, "b": 2}))


def test_usual_shares_need_no_sentence() -> None:
    labels = np.repeat(np.arange(4), 25)
    _, held = hold_out(labels, 0.2, np.random.default_rng(0))
    assert describe_hold_out(list("abcd"), labels, held, 0.2, "validation") == []


def test_classes_that_are_numbers_are_in_numeric_order(tmp_path: Path) -> None:
    data = load(write_classes(tmp_path / "numbers", {str(i): 3 for i in range(11)}))
    assert data.classes == [str(i) for i in range(11)]
    assert all(path.parent.name == str(label) for path, label in data.files["train"])
    assert any("numeric order: 0, 1, ..., 10" in note for note in data.notes)
    mixed = load(write_classes(tmp_path / "mixed", {"1": 3, "2": 3, "10": 3, "x": 3}))
    assert mixed.classes == ["1", "10", "2", "x"]


def test_all_damaged_images_are_named_at_once(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"cat": 30, "dog": 3})
    for i in range(25):
        (root / "cat" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError) as refused:
        load(root)
    said = str(refused.value)
    assert (
        said.startswith("25 images cannot be used: ")
        and said.count(".png' (cannot identify image file)") == 20
    )
    assert said.endswith("and 5 more; convert, repair or remove them.") and "\n" not in said
