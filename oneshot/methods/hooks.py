"""What a search calls and a method may override, beside its choices. Every function here does nothing."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.config import Config
from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class Hooks(Config):
    """Functions around epochs and steps. What one hands to a later one belongs in `SearchState.memory`."""

    # Whether `see_validation_gradients` wants the weights' gradients, which cost a third of a step.
    needs_validation_gradients: ClassVar[bool] = False
    # Whether something in a step, beside the operations that run, is drawn or counted anew in each step.
    steps_differ: ClassVar[bool] = False

    def before_epoch(self, state: SearchState) -> None:
        """Called before each epoch, once more after a resume. A search in stages begins them here."""

    def after_epoch(self, state: SearchState) -> None:
        """Called between two epochs. ENAS trains its controller here."""

    def perturb(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, draws: torch.Generator
    ) -> NetworkEdgeWeights:
        """The edge weights that the step of the weights uses, from those of the relaxation."""
        return edge_weights

    def move_weights(
        self, state: SearchState, edge_weights: NetworkEdgeWeights, batch: Any, step: Callable[[], None]
    ) -> None:
        """Called when the weights' gradients are there; `step` clips them and moves the weights."""
        step()

    def see_validation_gradients(self, state: SearchState, gradients: Mapping[str, Tensor]) -> None:
        """Called in an architecture step of first order, with the validation loss's gradients of weights."""

    def doubts(self, space: SearchSpace, probabilities: Mapping[str, Tensor]) -> list[str]:
        """What makes the genotype that is read off these weights doubtful, as sentences without a full stop.

        Args:
            space: what was searched.
            probabilities: (E, O) for each kind of cell.
        """
        return []
