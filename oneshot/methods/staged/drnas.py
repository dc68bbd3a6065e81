"""DrNAS: Dirichlet Neural Architecture Search (2021, arXiv:2006.10355). Settings of its released searches."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.relaxation import Dirichlet, Relaxation
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED
from oneshot.methods.staged.stage import Stage, StagedMethod

ONE_STAGE: dict[str, Any] = {"partial": 1, "stages": [], "warmup_epochs": 0}


class DrNas(StagedMethod):
    """The weights of an edge are a draw of a Dirichlet distribution, whose concentrations are learned.

    Progressive: few channels go through all operations at first, more through half of them later. The decay
    of Adam holds the concentrations near 1, which is the published regulariser; `--penalties anchor` with a
    decay of 0 is its form with a Kullback-Leibler divergence.
    """

    name: Literal["drnas"] = "drnas"
    relaxation: Relaxation = Dirichlet()
    geometry: Geometry = Adam(lr=6e-4)
    exclude_none: bool = True
    partial: int = 6
    stages: tuple[Stage, ...] = (Stage(epochs=25), Stage(epochs=25, keep=4, partial=4))
    warmup_epochs: int = 10
    channels: int = 36
    cells: int | None = 20
    sgd: WeightSgd = WeightSgd(lr=0.1, lr_min=0.0)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "darts_s3": {"exclude_none": False},  # where it is one of three
        "nasbench201": {
            "exclude_none": False,
            "geometry": {"lr": 3e-4},
            "partial": 4,
            "stages": [{"epochs": 50}, {"epochs": 50, "keep": 3, "partial": 2}],
            "epochs": 100,
            "channels": 16,
            "cells": None,
            "sgd": {"lr": 0.025, "lr_min": 0.001},
        },
        # Published for cells of images only; elsewhere in one stage.
        "recurrent": PUBLISHED["recurrent"] | ONE_STAGE,
        "proxyless": ONE_STAGE,
        "fbnet": ONE_STAGE,
        "chain32": ONE_STAGE,
    }
