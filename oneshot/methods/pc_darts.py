"""PC-DARTS: Partial Channel Connections (2020, arXiv:1907.05737). Settings of its CIFAR-10 search."""

from typing import Literal

from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import Method


class PcDarts(Method):
    """A quarter of the channels goes through the operations, the rest passes by.

    Edges into a node have weights of their own.
    """

    name: Literal["pc_darts"] = "pc_darts"
    # A quarter of the channels makes room in memory for four times the batch.
    partial: int = 4
    edge_weights: bool = True
    geometry: Geometry = Adam(lr=6e-4)
    # Weights are trained alone at first: early on, operations without weights look better than they are.
    warmup_epochs: int = 15
    batch_size: int = 256
    sgd: WeightSgd = WeightSgd(lr=0.1, lr_min=0.0)
