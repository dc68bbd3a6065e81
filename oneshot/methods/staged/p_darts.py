"""P-DARTS: Progressive Differentiable Architecture Search (2019, arXiv:1904.12760)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.seed import torch_generator
from oneshot.axes.alphas import Alphas
from oneshot.axes.derivation import derive_genotype
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.progress import Progress
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.staged.stage import Stage, StagedMethod
from oneshot.spaces.cells import has_cells_of_images
from oneshot.spaces.genotype import AnyGenotype, Genotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState

DECAY = 0.2  # of the dropout in each epoch in which the architecture is trained


class PDarts(StagedMethod):
    """Three searches one after another, each deeper and with fewer operations; dropout holds skips back.

    Each stage starts with new weights and alphas, and a cosine of its own.
    """

    name: Literal["p_darts"] = "p_darts"
    geometry: Geometry = Adam(lr=6e-4)
    stages: tuple[Stage, ...] = (
        Stage(epochs=25),
        Stage(epochs=25, keep=5, extra_cells=6),
        Stage(epochs=25, keep=3, extra_cells=12),
    )
    skip_dropout: tuple[float, ...] = Field(
        (0.1, 0.4, 0.7), description="dropout after skip connections at the start of each stage"
    )
    most_skips: int = Field(2, ge=0, description="skip connections that the normal cell keeps")
    warmup_epochs: int = 10
    epochs: int = 75
    batch_size: int = 96
    cells: int | None = 5
    sgd: WeightSgd = WeightSgd(lr_min=0.0)

    carries_over: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Published for the DARTS space only; the same numbers where five operations compete.
        "nasbench201": {
            "stages": [{"epochs": 25}, {"epochs": 25, "keep": 3}, {"epochs": 25, "keep": 2}],
            "cells": None,
        },
    }

    def learning_rate(self, progress: Progress) -> float:
        """A cosine over each stage."""
        done, length = self.epoch_of_stage(progress)
        return super().learning_rate(Progress(done, length, progress.tuning))

    def dropout(self, progress: Progress) -> float:
        """After skip connections: it falls linearly in the warm-up, then by a factor in each epoch."""
        done, length = self.epoch_of_stage(progress)
        starts = self.stage_starts(progress.epochs)
        stage = sum(start <= progress.epoch for start in starts) - 1
        rate = self.skip_dropout[stage] if stage < len(self.skip_dropout) else 0.0
        if done < self.warmup_epochs:
            return rate * (length - done - 1) / length
        return rate * math.exp(-DECAY * (done - self.warmup_epochs))

    def weigh_edges(
        self, space: SearchSpace, alphas: Alphas, progress: Progress, draws: torch.Generator
    ) -> dict[str, EdgeWeights]:
        """As DARTS, with the dropout of this epoch."""
        found, rate = super().weigh_edges(space, alphas, progress, draws), self.dropout(progress)
        return {kind: cell_weights._replace(skip_dropout=rate) for kind, cell_weights in found.items()}

    def forget(self, alpha_EO: Tensor, kept_EO: Tensor, state: SearchState) -> None:
        """All of them: a stage starts anew."""
        kind = next(kind for kind, alpha in state.alphas.operations.items() if alpha is alpha_EO)
        generator = torch_generator("cpu", state.seed, "alphas", kind, state.stage)
        alpha_EO.copy_(self.relaxation.start(kept_EO.cpu(), generator))
        assert state.architecture_optimizer is not None
        # Adam's moments were of the parameters before.
        state.architecture_optimizer.state.pop(alpha_EO, None)

    def genotype(self, state: SearchState) -> AnyGenotype:
        """At most `most_skips` skips in the normal cell: the weakest give way to what is next."""
        space, weights = state.space, self.probabilities(state.space, state.alphas)
        found = derive_genotype(space, weights, self.derivation)
        if "normal" not in weights or "skip_connect" not in space.operations:
            return found
        column = space.operations.index("skip_connect")
        weight_EO = weights["normal"]
        while len(edges := _skips(space, found)) > self.most_skips:
            weakest = min(edges, key=weight_EO[:, column].tolist().__getitem__)
            # An edge where nothing else competes stays as it is.
            if not bool((weight_EO[weakest] > 0).sum() > 1):
                break
            weight_EO[weakest, column] = 0.0
            found = derive_genotype(space, weights, self.derivation)
        return found

    def _misfit(self, space: SearchSpace) -> str | None:
        if not has_cells_of_images(space):
            return "it deepens networks of cells of images"
        return super()._misfit(space)


def _skips(space: SearchSpace, found: AnyGenotype) -> list[int]:
    """The edges of the normal cell that are skip connections."""
    edges = []
    assert isinstance(found, Genotype)
    for target, node in enumerate(found.cells["normal"].nodes, start=space.inputs):
        for name, source in node:
            if name == "skip_connect":
                edges.append(space.edges.index((source, target)))
    return edges
