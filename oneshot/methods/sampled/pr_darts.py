"""PR-DARTS: Theory-Inspired Path-Regularized Differential Network Architecture Search.

2020, arXiv:2006.16537. Settings of the released search. Its code may take one edge of a node twice
(`--method.derivation pairs_repeat`); here an edge counts once.
"""

from typing import Literal

from oneshot.axes.derivation import Derivation
from oneshot.axes.penalty import PathDepth, Penalty
from oneshot.axes.relaxation import HardConcrete, Relaxation
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import Method


class PrDarts(Method):
    """Stretched stochastic gates of which an edge keeps two.

    Groups of operations compete, and long paths of convolutions are rewarded.
    """

    name: Literal["pr_darts"] = "pr_darts"
    relaxation: Relaxation = HardConcrete()
    penalties: tuple[Penalty, ...] = (PathDepth(),)
    # The published search network differs from DARTS's in these two.
    pool_norm: bool = False
    last_norm: bool = True
    derivation: Derivation = "pairs"
    weights_first: bool = True
    epochs: int = 200
    batch_size: int = 250
    sgd: WeightSgd = WeightSgd(nesterov=True, weight_decay=5e-4)
