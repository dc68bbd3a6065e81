"""beta-DARTS: Beta-Decay Regularization (2022, arXiv:2203.01665)."""

from typing import Literal

from oneshot.method import Method
from oneshot.penalty import BetaDecay, Penalty


class BetaDarts(Method):
    """First-order DARTS whose logits are held together, more so in each epoch."""

    name: Literal["beta_darts"] = "beta_darts"
    penalties: tuple[Penalty, ...] = (BetaDecay(),)
