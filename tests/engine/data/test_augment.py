"""Every image of a batch gets its own draw, and the draw is a crop, a mirror image, a hole."""

import numpy as np
import torch

from engine.data.augment import cutout, mixup, random_crop, random_flip, resize
from engine.seed import derive, torch_generator


def generator() -> torch.Generator:
    return torch_generator("cpu", 0, "test")


def test_random_crop_is_a_crop_of_the_padded_image_at_each_images_own_place() -> None:
    x = torch.arange(40 * 2 * 6 * 6).view(40, 2, 6, 6)
    y = random_crop(x, 2, generator())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    corners = set()
    for before, after in zip(padded, y, strict=True):
        where = [
            (i, j) for i in range(5) for j in range(5) if torch.equal(before[:, i : i + 6, j : j + 6], after)
        ]
        assert len(where) == 1
        corners.add(where[0])
    assert len(corners) > 10
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_random_flip_mirrors_about_half() -> None:
    x = torch.rand(200, 1, 3, 4)
    y = random_flip(x, generator())
    mirrored = torch.tensor([torch.equal(a.flip(-1), b) for a, b in zip(x, y, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(x, y, strict=True)])
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130


def test_cutout_is_a_square_cut_off_at_the_border() -> None:
    holes = cutout(torch.ones(300, 3, 9, 9), 4, generator()) == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    sizes = holes[:, 0].sum((1, 2))
    assert sizes.max() == 16
    assert sizes.min() >= 4  # a centre in the corner leaves 2 x 2
    coloured = cutout(torch.ones(300, 3, 9, 9), 4, generator(), torch.tensor([2.0, 3.0, 4.0])[:, None, None])
    assert torch.equal(coloured == torch.tensor([2.0, 3.0, 4.0])[:, None, None], holes)


def test_mixup_keeps_probabilities_and_pairs_images_with_labels() -> None:
    y = torch.eye(5)
    x = y[:, :, None, None].expand(5, 5, 2, 2).clone()
    mixed_x, mixed_y = mixup(x, y, 0.4, np.random.default_rng(0))
    torch.testing.assert_close(mixed_x[:, :, 0, 0], mixed_y)
    torch.testing.assert_close(mixed_y.sum(1), torch.ones(5))


def test_resize_leaves_the_right_size_alone() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert resize(x, 8) is x
    assert resize(x, 12).shape == (2, 1, 12, 12)


def test_streams_are_stable_and_distinct() -> None:
    assert derive(0, "crop", 1) == 3324382763466931552
    assert len({derive(s, p, i) for s in range(3) for p in ("a", "b") for i in range(3)}) == 18
