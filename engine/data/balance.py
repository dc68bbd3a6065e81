"""Classes with unequal numbers of images: how many there are, an order that draws them evenly, and weights.

Both remedies act on training batches only. Validation and test images stay as they are.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.config import counted

Balance = Literal["none", "sampler", "weights"]
# From this ratio of the largest to the smallest class on, a command warns.
UNEQUAL = 1.5
LISTED = 12  # classes whose counts are printed one by one; of more only the ends
Ints = NDArray[np.int64]


def balanced_order(labels_N: Ints, rng: np.random.Generator) -> Ints:
    """The images of an epoch in which every class comes equally often.

    The epoch keeps its length N. Images of small classes come several times, each before any of its class
    comes once more; of large classes some are left out, others in each epoch.

        balanced_order(np.array([0, 0, 0, 1]), rng)  # two different images of class 0, and image 3 twice

    Args:
        labels_N: class of each image.
        rng: decides which images and in which order; one a number of epoch makes epochs differ.

    Returns:
        Indices (N,), mixed.
    """
    classes = np.unique(labels_N)
    quota, more = divmod(len(labels_N), len(classes))
    # Where N is no multiple of the number of classes, the classes that get one more image are drawn.
    has_more = set(rng.permutation(classes)[:more].tolist())
    drawn = []
    for label in classes:
        members = np.flatnonzero(labels_N == label)
        wanted = quota + (int(label) in has_more)
        rounds = [rng.permutation(members) for _ in range(-(-wanted // len(members)))]
        drawn.append(np.concatenate(rounds or [members[:0]])[:wanted])
    return rng.permutation(np.concatenate(drawn))


def class_weights(counts_K: Ints) -> NDArray[np.float32]:
    """Weights of the classes, inverse to their numbers of images; their mean over the images is 1.

    So the loss keeps its size, and with it the learning rate. A class without images gets weight 0.

    Args:
        counts_K: images of each class.
    """
    present = counts_K > 0
    weights_K = np.zeros(len(counts_K), np.float32)
    weights_K[present] = counts_K.sum() / (present.sum() * counts_K[present])
    return weights_K


def describe_counts(classes: Sequence[str], counts_K: Ints) -> str:
    """The number of training images of each class in one line; of many classes only the ends."""
    if len(classes) <= LISTED:
        parts = [f"{name} {count}" for name, count in zip(classes, counts_K, strict=True)]
        return f"training images of each class: {', '.join(parts)}"
    low, high = int(counts_K.argmin()), int(counts_K.argmax())
    if counts_K[low] == counts_K[high]:
        return f"training images of each class: {counts_K[low]}"
    return (
        f"training images of each class: {counts_K[low]} ({classes[low]}) to {counts_K[high]} "
        f"({classes[high]}), median {np.median(counts_K):g}"
    )


def describe_balance(classes: Sequence[str], counts_K: Ints, balance: Balance) -> str:
    """What is done about unequal classes: a warning if nothing is, and an empty text if they are equal."""
    if balance == "sampler":
        return "every class is drawn equally often (--data.balance sampler)"
    if balance == "weights":
        return "label losses are weighted by class (--data.balance weights)"
    low, high = int(counts_K.argmin()), int(counts_K.argmax())
    if counts_K[high] < UNEQUAL * counts_K[low]:
        return ""
    fewest = counted(int(counts_K[low]), "training image")
    return (
        f"warning: classes are unequal, from {fewest} of '{classes[low]}' to {counts_K[high]} of "
        f"'{classes[high]}': a network then prefers the large ones, and its accuracy hides that; "
        "--data.balance sampler draws all classes equally often"
    )
