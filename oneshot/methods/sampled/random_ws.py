"""RS-WS: Random Search and Reproducibility for Neural Architecture Search (2019, arXiv:1902.07638)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from engine.command.progress import progress as progress_bar
from engine.seed import numpy_generator
from oneshot.axes.alphas import Alphas
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress
from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.sampled.architecture import (
    Architecture,
    as_edge_weights,
    as_genotype,
    sample_architecture,
)
from oneshot.spaces.genotype import AnyGenotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class RandomWs(Method):
    """Every step trains one uniformly drawn architecture; at the end, many are compared by shared weights.

    In spaces whose cells cannot keep the operation `none`, it is not drawn; the published code draws it.
    """

    name: Literal["random_ws"] = "random_ws"
    candidates: int = Field(1000, ge=1, description="architectures judged in the end")
    batches: int = Field(10, ge=1, description="validation batches that each candidate is judged on")
    finalists: int = Field(10, ge=1, description="the best of them, judged on all validation images")

    has_architecture_step: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED | {
        "nasbench201": PUBLISHED["nasbench201"] | {"epochs": 250}
    }

    def start(self, space: SearchSpace, seed: int, device: torch.device) -> Alphas:
        """There is nothing to learn but weights."""
        return Alphas({}, {})

    def weigh_edges(
        self, space: SearchSpace, alphas: Alphas, progress: Progress, draws: torch.Generator
    ) -> dict[str, EdgeWeights]:
        """One architecture."""
        # The draw must depend on the step alone; the generator's seed does.
        rng = numpy_generator(draws.initial_seed(), "architecture")
        return as_edge_weights(space, sample_architecture(space, rng))

    def genotype(self, state: SearchState) -> AnyGenotype:
        """A random architecture: before the end there is no choice."""
        return as_genotype(state.space, self._candidate(state, 0))

    def final_genotype(self, state: SearchState) -> AnyGenotype:
        """The best candidate."""
        drawn = [self._candidate(state, number) for number in range(self.candidates)]
        return as_genotype(state.space, best_of(state, drawn, self.batches, self.finalists))

    def _candidate(self, state: SearchState, number: int) -> Architecture:
        return sample_architecture(state.space, numpy_generator(state.seed, "candidate", number))


def best_of(
    state: SearchState, architectures: list[Architecture], batches: int, finalists: int
) -> Architecture:
    """The best of `architectures` by shared weights; `state.lead` is then how far it is ahead.

    Args:
        state: the state of the search.
        architectures: what is compared.
        batches: how many validation batches each of them is measured on.
        finalists: how many of the best are then measured on all validation images or words.
    """
    quality = state.objective.quality
    sign = 1 if quality == "accuracy" else -1  # of perplexity less is better
    measurements = len(architectures) + min(finalists, len(architectures))
    with progress_bar("judge candidates", measurements) as advance:

        def score(architecture: Architecture, limit: int | None) -> float:
            value = state.measure(as_edge_weights(state.space, architecture), limit)
            advance(f"{quality} {value:.4g}")
            return sign * value

        # `measure` counts images or words, not batches.
        limit = batches * state.objective.batch_items
        scored = [(score(architecture, limit), architecture) for architecture in architectures]
        scored.sort(key=lambda pair: -pair[0])
        # The first measurement was short, so the best few are measured again on everything.
        finals = [architecture for _, architecture in scored[:finalists]]
        final_scores = [score(architecture, None) for architecture in finals]
        best, *others = sorted(final_scores, reverse=True)
        # The end of the search says whether that is more than chance.
        state.lead = best - others[0] if others else None
        return finals[final_scores.index(best)]
