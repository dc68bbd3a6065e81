"""GDAS: Searching for a Robust Neural Architecture in Four GPU Hours (2019, arXiv:1910.04465)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.relaxation import GumbelHard, Relaxation
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED, Method


class Gdas(Method):
    """One operation an edge and step, drawn by Gumbel-softmax with straight-through gradients.

    Only what is drawn is computed.
    """

    name: Literal["gdas"] = "gdas"
    relaxation: Relaxation = GumbelHard()
    weights_first: bool = True
    epochs: int = 250
    sgd: WeightSgd = WeightSgd(nesterov=True, weight_decay=5e-4)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED
