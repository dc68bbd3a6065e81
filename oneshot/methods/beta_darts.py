"""beta-DARTS: Beta-Decay Regularization (2022, arXiv:2203.01665)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.penalty import BetaDecay, Penalty
from oneshot.methods.method import Method


class BetaDarts(Method):
    """First-order DARTS whose logits are held together, more so in each epoch."""

    name: Literal["beta_darts"] = "beta_darts"
    penalties: tuple[Penalty, ...] = (BetaDecay(),)
    # On NAS-Bench-201 the authors' search is twice as long, and otherwise DARTS's on CIFAR-10.
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **Method.published,
        "nasbench201": {"epochs": 100},
    }
