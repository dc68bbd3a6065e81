"""DARTS: Differentiable Architecture Search (2019, arXiv:1806.09055). Settings of its CIFAR-10 search."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.methods.method import PUBLISHED, Method


class Darts(Method):
    """Softmax over all operations of an edge, and alternating steps of architecture and weights.

    The two kinds of step learn from two halves of the images. Every choice is the default of `Method`; a file
    of another method sets what its paper chooses otherwise.
    """

    name: Literal["darts"] = "darts"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED
