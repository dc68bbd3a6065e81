"""Images as people see them: turned as their camera says, of 16 bits too; and which files are left out."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from engine.data.folder import ImageFolder
from engine.data.image_files import ORIENTATION, open_image
from engine.data.sources import load_data
from engine.errors import UserError
from export.bundle import classify

CPU = torch.device("cpu")
PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (3, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


def save(path: Path, image: Image.Image, orientation: int, kind: str) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, kind, exif=exif)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    path = save(tmp_path / "a", Image.fromarray(PIXELS), orientation, kind)
    found = open_image(path)
    with Image.open(path) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
        assert np.array_equal(found, wanted)
        # The same in classify.py, which the server of the demo calls too.
        assert np.array_equal(classify.upright(image).convert("RGB"), wanted)
    assert found.size == ((16, 24) if orientation < 5 else (24, 16))


def test_a_photograph_that_was_stored_lying_down(nas_data: Path) -> None:
    lying, standing = (
        np.asarray(open_image(nas_data / "inputs" / name), float) for name in ("exif6.jpg", "upright.jpg")
    )
    assert lying.shape == standing.shape
    assert np.abs(lying - standing).mean() < 10  # both were compressed, each in its own direction


@pytest.mark.parametrize(
    "content", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0" + b"\xff" * 9]
)
@pytest.mark.filterwarnings("ignore:.*[Cc]orrupt EXIF")
def test_a_damaged_tag_leaves_the_image_as_it_is(tmp_path: Path, content: bytes) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=content)
    assert open_image(tmp_path / "a.jpg").size == (16, 24)


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "a.tif"])
def test_sixteen_bits_are_their_upper_eight(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (16, 16), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / name)
    found = np.asarray(open_image(tmp_path / name))[..., 0]
    assert np.array_equal(found, pixels >> 8)
    with Image.open(tmp_path / name) as image:
        how = {"image_size": 16, "resize": [16, 16], "channels": "gray", "mean": [0.0], "std": [1.0]}
        x = classify.prepare_image(
            image, {"preprocessing": how, "input": {"dtype": "uint8", "layout": "NHWC"}}
        )
    assert np.array_equal(x[0, ..., 0], pixels >> 8)


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="its pixels are F"):
        open_image(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image, pytest.raises(ValueError, match="its pixels are F"):
        classify.upright(image)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 301)])
def test_lines_of_pixels_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    """Resized by their shorter side they would take gigabytes, and a hundred bytes can ask for that."""
    Image.new("RGB", size).save(tmp_path / "a.png")
    how = {
        "resize_shorter_side": 256,
        "center_crop": 224,
        "resize_interpolation": "bicubic",
        "channels": "RGB",
    }
    with pytest.raises(ValueError, match="too long and narrow"):
        open_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ValueError, match="too long and narrow"):
        classify.prepare_image(image, {"preprocessing": how, "input": {}})


def test_the_smallest_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (1, 1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def run(*names: str) -> Path:
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, "PNG")
        for split, number in (("train", 6), ("val", 2), ("test", 2)):
            for label in "ab":
                folder = tmp_path / split / label
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(number):
                    (folder / f"{i}.png").write_bytes(file.getvalue())
        for name in names:
            (tmp_path / name).write_bytes(b"anything")
        return tmp_path

    return run


def notes(path: Path) -> list[str]:
    return load_data(ImageFolder(name="imagefolder", path=path, size=16, workers=0), CPU, 0).notes


def test_what_is_left_out_is_counted_and_named_with_its_reason(write: Callable[..., Path]) -> None:
    assert notes(write()) == []
    path = write("train/a/x.HEIC", "train/a/y.heic", "test/b/z.heic", "train/b/notes.txt", "train/b/._0.png")
    found = notes(path)
    assert len(found) == 3
    assert found[0].startswith("1 file is left out") or found[0].startswith("3 files are left out")
    said = "\n".join(found)
    assert (
        f"3 files are left out, such as '{path / 'train/a/x.HEIC'}': .heic images cannot be read here" in said
    )
    assert f"1 file is left out, such as '{path / 'train/b/notes.txt'}': a name that ends in '.txt'" in said
    assert "a name that begins with a dot" in said


def test_a_class_of_files_that_are_left_out(write: Callable[..., Path]) -> None:
    path = write("train/a/x.heic")
    for file in (path / "train" / "a").glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"a' has no images \(1 file is left out, such as 'x\.heic': \.heic"):
        notes(path)


def test_a_class_without_validation_images_is_said(write: Callable[..., Path]) -> None:
    path = write()
    for file in (path / "val" / "b").iterdir():
        file.unlink()
    assert notes(path) == [f"'{path / 'val'}' has no images of 'b'"]
    (path / "val" / "b").rmdir()
    assert notes(path) == [f"'{path / 'val'}' has no images of 'b'"]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_half_of_the_images_are_avif(nas_data: Path) -> None:
    path = nas_data / "inputs" / "avif"
    with pytest.raises(
        UserError, match=r"Löwenzahn 🌼' has no images \(12 files are left out.*\.heic images cannot"
    ):
        notes(path)
    names = [file.name for file in (path / "train" / "rote Rose").iterdir()]
    assert sum(name.endswith(".avif") for name in names) == 6
    found = [open_image(path / "train" / "rote Rose" / name) for name in names]
    assert all(min(image.size) > 8 for image in found)
