"""Variational dropout of recurrent cells: one mask for all steps of a window."""

from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from engine.config import Config


class Dropout(Config):
    """Rates of variational dropout, each the probability of a 0."""

    output: float = Field(0.75, ge=0, lt=1, description="of the cell's outputs, before the decoder")
    hidden: float = Field(0.25, ge=0, lt=1, description="of every state, before a product")
    inputs: float = Field(0.75, ge=0, lt=1, description="of the cell's inputs, before the product")
    embedding: float = Field(0.2, ge=0, lt=1, description="of the embedded words")
    words: float = Field(0.0, ge=0, lt=1, description="of whole words, wherever they occur in the window")


class Masks(NamedTuple):
    """The factors of dropout: 0 or 1 / (1 - rate), so that the mean stays. None: nothing is multiplied."""

    output_BH: Tensor | None = None
    hidden_BH: Tensor | None = None
    inputs_BH: Tensor | None = None
    embedding_BH: Tensor | None = None
    words_V1: Tensor | None = None


NO_MASKS = Masks()


def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` under a mask."""
    # No mask is not a mask of ones: nothing is multiplied in evaluation.
    return x if mask is None else x * mask
