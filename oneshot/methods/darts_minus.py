"""DARTS-: Robustly Stepping out of Performance Collapse Without Indicators (2021, arXiv:2009.01027)."""

from typing import Literal

from oneshot.axes.auxiliary_skip import AuxiliarySkip
from oneshot.methods.method import Method


class DartsMinus(Method):
    """First-order DARTS with a skip connection beside each edge's operations, which fades away.

    The operation skip_connect then need not help the network to train. The authors released the search on the
    DARTS space, whose settings are DARTS's; those of their search on NAS-Bench-201 are not known, so the same
    hold there.
    """

    name: Literal["darts_minus"] = "darts_minus"
    # Its default falls linearly from 1 to 0, as published.
    auxiliary_skip: AuxiliarySkip | None = AuxiliarySkip()
