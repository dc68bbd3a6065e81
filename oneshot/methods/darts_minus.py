"""DARTS-: Robustly Stepping out of Performance Collapse Without Indicators (2021, arXiv:2009.01027)."""

from typing import Literal

from oneshot.methods.method import AuxiliarySkip, Method


class DartsMinus(Method):
    """First-order DARTS with a skip connection beside each mixture that fades away, so that the operation
    need not play its part."""

    name: Literal["darts_minus"] = "darts_minus"
    auxiliary_skip: AuxiliarySkip | None = AuxiliarySkip()
