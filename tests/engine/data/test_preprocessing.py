"""The normalisation, the crop and the interpolation that weights want take the place of the source's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from PIL import Image

from engine.data.dataset import Preprocessing
from engine.data.digits import Digits
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.sources import load_data
from engine.errors import UserError

CPU = torch.device("cpu")
WANTED = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_share=0.8, interpolation="bilinear")


def pixels(x_NCHW: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return 255 * (x_NCHW * std + mean)


def colours(path: Path, channels: int) -> Npz:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 6, 6, channels), np.uint8), np.arange(40) % 4
    np.savez(path, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    return Npz(name="npz", path=path, crop=0, flip=False)


def test_images_are_normalised_as_the_weights_want(tmp_path: Path) -> None:
    source = colours(tmp_path / "x.npz", 3)
    own, wanted = load_data(source, CPU, 0), load_data(source.prepared_for(WANTED), CPU, 0)
    assert wanted.mean == [0.5, 0.4, 0.3] and wanted.std == [0.2, 0.3, 0.4]
    x, y = next(own.batches("val", 8)), next(wanted.batches("val", 8))
    assert not torch.allclose(x[0], y[0])
    same = Preprocessing(mean=tuple(own.mean), std=tuple(own.std))
    torch.testing.assert_close(pixels(x[0], same), pixels(y[0], WANTED), atol=1e-3, rtol=0)


def test_what_the_user_says_counts(tmp_path: Path) -> None:
    source = colours(tmp_path / "x.npz", 3).model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    assert source.prepared_for(WANTED) == source
    folder = ImageFolder(name="imagefolder", path=tmp_path, interpolation="bicubic").prepared_for(WANTED)
    assert (folder.interpolation, folder.crop_share, folder.mean) == ("bicubic", 0.8, WANTED.mean)


def test_grey_images_become_three_equal_channels() -> None:
    data = load_data(Digits(cutout=3).prepared_for(WANTED), CPU, 0)
    assert data.channels == 3
    plain, augmented = next(data.batches("val", 8))[0], next(data.train_batches(8, 0))[0]
    for x in (plain, augmented):
        assert x.shape == (8, 3, 8, 8) and x.is_contiguous(memory_format=torch.channels_last)
    red, green, blue = pixels(plain, WANTED).unbind(1)
    torch.testing.assert_close(red, green, atol=1e-3, rtol=0)
    torch.testing.assert_close(red, blue, atol=1e-3, rtol=0)


def test_colours_for_grey_weights_are_one_sentence(tmp_path: Path) -> None:
    grey = Preprocessing(mean=(0.5,), std=(0.5,))
    with pytest.raises(UserError, match=r"have 3 channels, but the weights .* want 1; give other images"):
        load_data(colours(tmp_path / "x.npz", 3).prepared_for(grey), CPU, 0)


@pytest.mark.parametrize("values", [{"mean": (0.5,)}, {"mean": (0.5,), "std": (1.0, 1.0)}, {"std": (1.0,)}])
def test_mean_and_deviation_belong_together(values: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="one number a channel for each"):
        Digits(**values)  # type: ignore[arg-type]


def test_pixels_in_memory_have_a_digest(tmp_path: Path) -> None:
    source = colours(tmp_path / "x.npz", 3)
    digest = load_data(source, CPU, 0).pixels_sha256
    assert digest is not None and digest == load_data(source.prepared_for(WANTED), CPU, 0).pixels_sha256
    assert digest != load_data(source, CPU, 1).pixels_sha256, "other images are held out"


def test_a_folder_is_cropped_and_resized_as_the_weights_want(tmp_path: Path) -> None:
    rng, images = np.random.default_rng(0), []
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(5):
                images.append(Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)))
                images[-1].save(tmp_path / split / name / f"{i}.png")
    source = ImageFolder(name="imagefolder", path=tmp_path, size=20, workers=0)
    data = load_data(source.prepared_for(WANTED), CPU, 0)
    found, _ = next(data.batches("test", 10))
    steps = [
        v2.Resize(25, v2.InterpolationMode.BILINEAR, antialias=True),
        v2.CenterCrop(20),
        v2.PILToTensor(),
    ]
    prepare = v2.Compose(steps)
    wanted = prepare(images[-1]).float()  # the last test image, wherever it is in the mixed order
    distances = (pixels(found, WANTED) - wanted).abs().amax((1, 2, 3))
    assert float(distances.min()) < 1e-3
    assert data.preprocessing() == {
        "resize_shorter_side": 25,
        "center_crop": 20,
        "crop_share": 0.8,
        "resize_interpolation": "bilinear, antialiased",
    }
    assert load_data(source, CPU, 0).preprocessing()["crop_share"] == 0.875
