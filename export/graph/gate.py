"""What decides about a quantised file: images that gave no range, and how much their number can tell."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config import counted
from engine.errors import UserError
from engine.statistics import paired_drop_interval

# With fewer images the gate cannot tell the usual limit of half a point from much more, and says so.
ENOUGH_IMAGES = 100
MOST_CALIBRATION = 256  # more hardly widen a range, and each one is run once for every layer's range


class SplitImages(NamedTuple):
    """Indices of the images that give the ranges, and of those that judge the file. None is in both."""

    calibration: NDArray[np.intp]
    judges: NDArray[np.intp]


def split_images(count: int) -> SplitImages:
    """Divide images between calibration and judgement.

    At most half of them, and at most 256, give the ranges. They are spread evenly, since images often come
    sorted by class.

    Args:
        count: how many images there are.

    Raises:
        UserError: there are not two. An image that gave the ranges cannot judge them.
    """
    if count < 2:
        raise UserError(
            f"{count} image cannot give the ranges of a quantised file and judge it too; give two images or "
            "more (100 or more say something about accuracy), or others to calibrate with (calibration=)."
        )
    calibration = np.linspace(0, count - 1, min(count // 2, MOST_CALIBRATION)).astype(np.intp)
    return SplitImages(calibration, np.setdiff1d(np.arange(count), calibration))


def gate_note(images: int, calibration: int) -> str:
    """What so few images cannot tell, as a sentence; empty if there are enough of both kinds.

    Args:
        images: how many judged the file.
        calibration: how many gave its ranges.
    """
    said = []
    if images < ENOUGH_IMAGES:
        _, finest = paired_drop_interval(0, 0, images)
        said.append(
            f"with {counted(images, 'image')} to judge it, the gate can tell differences above "
            f"{100 * finest:.0f} points of top-1 only"
        )
    if calibration < ENOUGH_IMAGES:
        said.append(f"its ranges come from {counted(calibration, 'image')}, and others may leave them")
    return "; ".join(said)
