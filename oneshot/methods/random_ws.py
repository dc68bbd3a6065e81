"""RS-WS: Random Search and Reproducibility for Neural Architecture Search (2019, arXiv:1902.07638)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from engine.command.progress import progress
from engine.seed import numpy_generator
from oneshot.axes.edge_weights import Mixture
from oneshot.axes.relaxation import At
from oneshot.methods.method import PUBLISHED, Alphas, Method
from oneshot.methods.sampled import Choice, as_genotype, as_mixtures, draw
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Genotype

if TYPE_CHECKING:
    from oneshot.state import Searching


class RandomWs(Method):
    """Every step trains one uniformly drawn architecture; afterwards the best of many by shared weights wins.

    Where a found cell cannot keep the operation none, none is not drawn; the published code draws it.
    """

    name: Literal["random_ws"] = "random_ws"
    candidates: int = Field(1000, ge=1, description="architectures judged in the end")
    batches: int = Field(10, ge=1, description="validation batches that each candidate is judged on")
    finalists: int = Field(10, ge=1, description="the best of them, judged on all validation images")

    learns: ClassVar[bool] = False
    on: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED | {
        "nasbench201": PUBLISHED["nasbench201"] | {"epochs": 250}
    }

    def start(self, space: CellSpace, seed: int, device: torch.device) -> Alphas:
        """There is nothing to learn but weights."""
        return Alphas({}, {})

    def mixtures(
        self, space: CellSpace, alphas: Alphas, at: At, draws: torch.Generator
    ) -> dict[str, Mixture]:
        """One architecture."""
        return as_mixtures(space, draw(space, numpy_generator(draws.initial_seed(), "architecture")))

    def genotype(self, searching: "Searching") -> Genotype:
        """Before the end there is no choice: one at random."""
        return as_genotype(
            searching.space, draw(searching.space, numpy_generator(searching.seed, "candidate", 0))
        )

    def final_genotype(self, searching: "Searching") -> Genotype:
        """The best candidate."""
        space = searching.space
        drawn = [
            draw(space, numpy_generator(searching.seed, "candidate", number))
            for number in range(self.candidates)
        ]
        return as_genotype(space, best_of(searching, drawn, self.batches, self.finalists))


def best_of(searching: "Searching", choices: list[Choice], batches: int, finalists: int) -> Choice:
    """The best of `choices` by shared weights: all on `batches` validation batches, then the `finalists` best
    on everything."""
    sign = 1 if searching.task.quality == "accuracy" else -1
    with progress("judge candidates", len(choices) + min(finalists, len(choices))) as advance:

        def judge(choice: Choice, limit: int | None) -> float:
            value = searching.measure(as_mixtures(searching.space, choice), limit)
            advance(f"{searching.task.quality} {value:.4g}")
            return sign * value

        ranked = sorted(choices, key=lambda choice: -judge(choice, batches * searching.task.batch_items))
        return max(ranked[:finalists], key=lambda choice: judge(choice, None))
