"""FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search.

2019, arXiv:1812.03443. Settings of the paper's search on ImageNet; the authors' search code is not public.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.penalty import CostPenalty, Penalty
from oneshot.axes.relaxation import GumbelSoft, Relaxation
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED, Method


class FbNet(Method):
    """All operations run, weighted by Gumbel-softmax, and the loss is a product with the cost's logarithm."""

    name: Literal["fbnet"] = "fbnet"
    # Each epoch multiplies the temperature by exp(-0.045), about 0.956.
    relaxation: Relaxation = GumbelSoft(tau_start=5.0, tau_factor=math.exp(-0.045))
    geometry: Geometry = Adam(lr=0.01, betas=(0.9, 0.999), weight_decay=5e-4)
    penalties: tuple[Penalty, ...] = (CostPenalty(form="fbnet"),)
    weights_first: bool = True
    warmup_epochs: int = 10
    epochs: int = 90
    batch_size: int = 192
    sgd: WeightSgd = WeightSgd(lr=0.1, lr_min=0.0, weight_decay=1e-4, clip_norm=None)
    chains: ClassVar[str | None] = "fbnet"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Ours, for small images: minutes instead of days.
        "chain32": {"epochs": 40, "warmup_epochs": 5, "batch_size": 64},
        # Costs are known for images only.
        "recurrent": PUBLISHED["recurrent"] | {"penalties": [], "warmup_epochs": 0},
    }
