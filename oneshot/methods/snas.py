"""SNAS: Stochastic Neural Architecture Search (2019, arXiv:1812.09926). Settings of its released search."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.relaxation import GumbelSoft, Relaxation
from oneshot.methods.method import PUBLISHED, Method


class Snas(Method):
    """All operations run, weighted by a draw of the concrete distribution that becomes nearly one-hot.

    Weights and architecture learn from one loss, in one step.
    """

    name: Literal["snas"] = "snas"
    relaxation: Relaxation = GumbelSoft(mean=1.0, std=0.01)
    level: Literal["bilevel", "single"] = "single"
    epochs: int = 150
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # As DrNAS's authors searched there: in two levels, with a temperature of 10 - 0.09 epoch.
        "nasbench201": {
            "level": "bilevel",
            "relaxation": {"tau_start": 10.09, "tau_end": 1.09, "mean": 0.0, "std": 1e-3},
            "epochs": 100,
        },
        # A text has two parts.
        "recurrent": PUBLISHED["recurrent"] | {"level": "bilevel"},
    }
