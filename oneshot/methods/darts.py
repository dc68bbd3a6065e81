"""DARTS: Differentiable Architecture Search (2019, arXiv:1806.09055). Settings of its CIFAR-10 search."""

from typing import Literal

from oneshot.methods.method import Method


class Darts(Method):
    """Softmax over all operations of an edge; alternating architecture and weight steps on two halves of the
    images."""

    name: Literal["darts"] = "darts"
