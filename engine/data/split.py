"""Hold images out of the training images, class by class, and say what small classes make of it."""

from collections.abc import Sequence

import numpy as np

from engine.config import are
from engine.data.balance import Ints
from engine.errors import UserError

NAMED = 5  # classes that a sentence names; of more it says how many


def hold_out(labels: Ints, fraction: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Split indices class by class.

    Args:
        labels: class of each image (N,).
        fraction: share of each class to hold out; at least one image of each class that has two or more.
        rng: decides which.

    Returns:
        The indices that stay and the indices that are held out, both sorted.

    Raises:
        UserError: nothing can be held out, since no class has two images.
    """
    held = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        wanted = max(1, round(fraction * len(members)))
        # One image of each class stays: a class that is never trained cannot be recognised.
        held.append(members[: min(wanted, len(members) - 1)])
    out = np.sort(np.concatenate(held))
    if len(out) == 0:
        raise UserError(
            "No class has two or more training images, so none can be held out for validation; add images."
        )
    return np.setdiff1d(np.arange(len(labels)), out), out


def describe_hold_out(
    classes: Sequence[str], labels_N: Ints, held: Ints, fraction: float, purpose: str
) -> list[str]:
    """Sentences about held-out images where small classes bend the share that was asked for.

    Args:
        classes: names of the classes.
        labels_N: class of each image from which some were held out.
        held: indices of those.
        fraction: the share that was asked for.
        purpose: what they are held out for, such as "validation".
    """
    said = []
    share = len(held) / len(labels_N)
    # A third more or less than asked for is more than rounding of large classes makes.
    if abs(share - fraction) > fraction / 3:
        said.append(
            f"{len(held)} of {len(labels_N)} images {are(len(held))} held out for {purpose}, {share:.0%} "
            f"instead of {fraction:.0%}: of each class at least one goes and one stays"
        )
    counts_K = np.bincount(labels_N[held], minlength=len(classes))
    without = [name for name, count in zip(classes, counts_K, strict=True) if count == 0]
    if without:
        names = ", ".join(without[:NAMED]) + (", ..." if len(without) > NAMED else "")
        said.append(
            f"{len(without)} of {len(classes)} classes {are(len(without))} too small to give an image for "
            f"{purpose}: {names}"
        )
    return said
