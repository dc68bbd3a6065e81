"""The images, texts and tables of a GPU day: a folder of real data, or the digits that scikit-learn has.

Files may have come in pieces. CIFAR-10 may be one cifar10.npz, a folder cifar10/ of several .npz files whose
arrays of one name are joined, or such a folder of lossless mosaics (x_train_00.webp, ..., each of 32 x 32
images in rows) beside their labels in meta.npz; some mosaics may be missing.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # of a CIFAR image in a mosaic
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Found(NamedTuple):
    """What there is. cifar10: an .npz file; table: of NAS-Bench-201's accuracies after 200 epochs."""

    cifar10: Path | None
    table: Path | None

    def image_flags(self) -> list[str]:
        """The flags of commands that train on images: CIFAR-10, or the digits without it."""
        if self.cifar10 is None:
            return ["--data", "digits"]
        return ["--data", "npz", "--data.path", str(self.cifar10)]

    def named(self) -> str:
        """What the images are called in a record."""
        return "the embedded digits" if self.cifar10 is None else "CIFAR-10"


def find_data(out: Path) -> Found:
    """Look in the folder that NAS_DATA names, in shared/data of this repository and in the current folder."""
    folders = [Path("shared/data"), Path()]
    if os.environ.get("NAS_DATA"):
        folders.insert(0, Path(os.environ["NAS_DATA"]))
    cifar10 = table = None
    for folder in folders:
        cifar10 = cifar10 or _cifar10(folder, out)
        path = folder / "nasbench201" / "accuracy_200_epochs.csv"
        if table is None and path.exists():
            table = path.resolve()
    return Found(cifar10, table)


def _cifar10(folder: Path, out: Path) -> Path | None:
    whole, pieces, joined = folder / "cifar10.npz", folder / "cifar10", out / "cifar10.npz"
    if whole.exists():
        return whole.resolve()
    if not pieces.is_dir():
        return None
    if not joined.exists():
        arrays = join_pieces(pieces)
        if arrays is None:
            return None
        joined.parent.mkdir(parents=True, exist_ok=True)
        np.savez(joined, **arrays)
    return joined.resolve()


def join_pieces(folder: Path) -> dict[str, NDArray[np.uint8]] | None:
    """The arrays of a CIFAR-10 that is in pieces; None if there are no images, or none of a split."""
    parts: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in ARRAYS}
    for path in sorted(folder.glob("*.npz")):
        if path.name != "meta.npz":
            with np.load(path) as arrays:
                for name in ARRAYS:
                    if name in arrays:
                        parts[name].append(arrays[name])
    if (folder / "meta.npz").exists():
        with np.load(folder / "meta.npz") as labels:
            for split in ("train", "test"):
                _read_mosaics(folder, split, labels[f"y_{split}"], parts)
    if not all(parts.values()):
        return None
    return {name: np.concatenate(found) for name, found in parts.items()}


def _read_mosaics(
    folder: Path, split: str, labels: NDArray[np.uint8], parts: dict[str, list[NDArray[np.uint8]]]
) -> None:
    paths = sorted(folder.glob(f"x_{split}_*.webp"))
    if not paths:
        return
    from PIL import Image

    for path in paths:
        mosaic = np.asarray(Image.open(path).convert("RGB"))
        rows, columns = mosaic.shape[0] // SIDE, mosaic.shape[1] // SIDE
        tiles = mosaic.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
        images = tiles.reshape(-1, SIDE, SIDE, 3)
        # The number of a mosaic says where its images stand, also where others are missing.
        start = int(path.stem.rsplit("_", 1)[1]) * len(images)
        parts[f"x_{split}"].append(images)
        parts[f"y_{split}"].append(labels[start : start + len(images)])
